// The page: a form, one slider for groups, the scenes. Whatever changes goes into the address, and the page follows the address.

const SCENES = [["wires", "Wires and weights", wiresScene], ["filter", "One filter", filterScene],
                ["payment", "Promise and payment", paymentScene], ["shuffle", "Channel shuffle", shuffleScene],
                ["devices", "Devices", devicesScene], ["code", "Code", codeScene]];
const FIELDS = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "output_padding", "size", "batch"];

const at = id => document.getElementById(id);
let state = parseHash(location.hash || START), drawnNow = null, stopNow = () => {};

function set(change) {
  state = withValidGroups({...state, ...change});
  if ("in_channels" in change || "out_channels" in change || "groups" in change) state = {...state, pin: change.pin ?? ""};
  remember();
  show();
}

function remember() {
  try {
    history.replaceState(null, "", formatHash(state));
  } catch {
    // A page without an address of its own, such as a frame in a notebook, keeps its state to itself.
  }
}

function buildForm() {
  const form = at("fields");
  for (const name of FIELDS) {
    const one = name in NUMBERS, kind = one ? {type: "number", min: 1} : {type: "text", inputmode: "numeric", title: "3, or 3x5 for each dimension"};
    form.append(html("label", {}, name, html("input", {...kind, name, oninput: event => {
      if (event.target.value !== "") set({[name]: one ? Number(event.target.value) : parseExtent(event.target.value)});
    }})));
  }
  form.append(html("label", {}, "dims", html("select", {name: "dims", onchange: event => set({dims: Number(event.target.value)})},
    [1, 2, 3].map(dims => html("option", {value: dims}, String(dims))))));
  for (const name of ["transposed", "bias"])
    form.append(html("label", {class: "flag"}, html("input", {type: "checkbox", name, onchange: event =>
      set(name === "transposed" ? {transposed: event.target.checked, output_padding: 0} : {bias: event.target.checked})}), name));
  for (const [name, preset] of PRESETS) at("presets").append(html("button", {type: "button", onclick: () => {
    state = presetState(state, preset);
    remember();
    show();
  }}, name));
  SCENES.forEach(([name, title], i) => at("tabs").append(html("button", {type: "button", role: "tab", id: `tab-${name}`, "aria-controls": "scene",
    onclick: () => set({scene: name, pin: ""}),
    onkeydown: event => {
      const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      if (!step) return;
      const next = SCENES[(i + step + SCENES.length) % SCENES.length][0];
      set({scene: next, pin: ""});
      at(`tab-${next}`).focus();
    }}, title)));
  at("groups").addEventListener("input", event => set({groups: validOf(state)[event.target.value]}));
  at("svg").addEventListener("click", () => download(`groups-${state.scene}.svg`, standalone(drawnNow).source, "image/svg+xml"));
  at("png").addEventListener("click", () => savePng(drawnNow, `groups-${state.scene}.png`));
  at("fields").addEventListener("submit", event => event.preventDefault());
  addEventListener("hashchange", () => {
    state = withValidGroups(parseHash(location.hash));
    show();
  });
}

const validOf = ({in_channels, out_channels}) => validGroups(in_channels, out_channels);

function fillForm(spec) {
  for (const input of at("fields").elements) {
    if (input.type === "checkbox") input.checked = state[input.name];
    else if (input.name && extentText(parseExtent(input.value)) !== extentText(state[input.name])) input.value = extentText(state[input.name]);
  }
  at("fields").elements.output_padding.closest("label").hidden = !state.transposed;
  const valid = spec.valid_groups, slider = at("groups");
  slider.max = valid.length - 1;
  slider.value = valid.indexOf(spec.groups);
  slider.disabled = valid.length === 1;
  slider.setAttribute("aria-valuetext", `${spec.groups} groups, ${spec.kind}`);
  at("groups-value").textContent = spec.groups;
  at("kind").textContent = spec.kind;
  at("valid").textContent = valid.length === 1 ? "these channels allow one group only" : `valid: ${listSome(valid, spec.groups).replace(/\.\.\./g, "…")}`;
}

function facts(spec) {
  const cost = costOf(spec, state.size, state.batch), dense = costOf(withGroups(spec, 1), state.size, state.batch);
  const times = (part, whole) => (part === whole ? "as dense" : `dense has ${ratioText(whole / part)}×`);
  const rows = [["parameters", countText(spec.parameters), times(spec.parameters, withGroups(spec, 1).parameters)],
                ["multiply-adds", countText(cost.macs), times(cost.macs, dense.macs)],
                ["least bytes moved", bytesText(cost.bytes), times(cost.bytes, dense.bytes)],
                ["output", [state.batch, spec.out_channels, ...cost.output_size].join(" × "), ""]];
  at("facts").replaceChildren(...rows.map(([name, value, more]) => html("dl", {}, html("dt", {}, name), html("dd", {}, value), html("dd", {class: "soft"}, more))));
}

function show() {
  let spec;
  const error = at("error");
  try {
    spec = makeSpec(state);
    sizesOf(spec, state.size);
    checkInteger("batch", state.batch, 1);
  } catch (problem) {
    if (!(problem instanceof BadSpec)) throw problem;
    // What was drawn last stays, so that nothing is lost while the reader mends a number.
    error.textContent = problem.message;
    for (const input of at("fields").elements) if (input.name) input.toggleAttribute("aria-invalid", input.name === problem.field);
    return;
  }
  error.textContent = "";
  for (const input of at("fields").elements) input.removeAttribute("aria-invalid");
  fillForm(spec);
  facts(spec);
  const [name, , draw] = SCENES.find(([each]) => each === state.scene) ?? SCENES[0];
  for (const [each] of SCENES) {
    const chosen = each === name;
    at(`tab-${each}`).setAttribute("aria-selected", chosen);
    at(`tab-${each}`).tabIndex = chosen ? 0 : -1;
  }
  at("scene").setAttribute("aria-labelledby", `tab-${name}`);
  stopNow();
  const focused = focusOf(document.activeElement);
  const {drawn, controls, says, sum, stop} = draw(state, spec, set);
  stopNow = stop ?? (() => {});
  drawnNow = drawn;
  at("scene").replaceChildren(...[controls, drawn, sum ? html("pre", {class: "sum", tabindex: "0"}, sum) : null].filter(Boolean));
  at("says").textContent = says;
  for (const button of [at("svg"), at("png")]) button.hidden = !(drawn instanceof SVGElement);
  refocus(focused);
}

// A scene is drawn anew at each change: whoever has the keyboard keeps it.
function focusOf(element) {
  if (!element || !at("scene").contains(element)) return null;
  const keep = element.dataset?.keep;
  return keep ? `[data-keep="${keep}"]` : element.getAttribute("aria-label") ? `[aria-label="${element.getAttribute("aria-label")}"]` : null;
}

function refocus(selector) {
  if (selector) at("scene").querySelector(selector)?.focus({preventScroll: true});
}

buildForm();
state = withValidGroups(state);
show();
