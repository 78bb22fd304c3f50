// Scene: the groups of a layer on several devices. Who holds what, and what crosses to the layer behind it.

const DEVICES = {width: 900, top: 54, box: 74, gap: 16, here: 150, next: 640, boxWidth: 270};
const NEXT = {same: "has the same groups", dense: "is dense"};

function devicesScene(state, spec, set) {
  const devices = Math.min(8, Math.max(1, state.devices)), held = partition(spec.groups, devices), D = DEVICES;
  const cost = costOf(spec, state.size, state.batch), next = state.next in NEXT ? state.next : "same";
  const middle = device => D.top + device * (D.box + D.gap) + D.box / 2, parts = [];
  const busy = held.map(([first, end], device) => ({device, first, end})).filter(({first, end}) => end > first);
  parts.push(text(D.here, 24, "this layer", {class: "soft"}), text(D.next, 24, `the next layer ${NEXT[next]}`, {class: "soft"}));
  for (const from of busy)
    for (const to of next === "dense" ? held.keys() : [from.device]) {
      const x = D.here + D.boxWidth, between = (x + D.next) / 2, crosses = to !== from.device;
      parts.push(svg("path", {d: `M${x} ${middle(from.device)}C${between} ${middle(from.device)} ${between} ${middle(to)} ${D.next} ${middle(to)}`,
        fill: "none", stroke: colourOf(from.first), "stroke-width": crosses ? 2 : 4, "stroke-dasharray": crosses ? "5 4" : null, opacity: 0.8}));
    }
  held.forEach(([first, end], device) => {
    const y = middle(device) - D.box / 2, count = end - first, colour = count ? colourOf(first) : "none";
    const channels = each => span([first * each, end * each]);
    parts.push(deviceBox(D.here, y, D.boxWidth, colour, `device ${device}`, count ? `${plural(count, "group")}: ${span([first, end])}` : "holds nothing",
                         count ? `${(100 * count / spec.groups).toFixed(1).replace(/\.0$/, "")} % of the weights and the work` : ""));
    if (count) parts.push(text(D.here - 44, middle(device) + 4, `in ${channels(spec.inputs_per_filter)}`, {"text-anchor": "end", class: "label"}),
      svg("path", {d: `M${D.here - 38} ${middle(device)}H${D.here}`, stroke: colour, "stroke-width": 4}));
    const needs = next === "dense" ? `needs all ${thousands(spec.out_channels)} channels` : count ? `needs ${channels(spec.outputs_per_group)}: its own` : "";
    parts.push(deviceBox(D.next, y, 250, colour, `device ${device}`, needs, ""));
  });
  const range = html("label", {}, html("span", {}, "devices ", html("output", {}, String(devices))),
    html("input", {type: "range", min: 1, max: 8, value: devices, "data-keep": "devices", oninput: event => set({devices: Number(event.target.value)})}));
  const choice = html("label", {}, "the next layer", html("select", {"data-keep": "next", onchange: event => set({next: event.target.value})},
    Object.entries(NEXT).map(([value, words]) => html("option", {value, selected: value === next}, words))));
  return {drawn: picture(D.width, middle(devices - 1) + D.box, `${plural(spec.groups, "group")} on ${plural(devices, "device")}`, parts),
          controls: html("div", {class: "controls"}, range, choice), says: devicesWords(spec, devices, held, cost, next)};
}

function deviceBox(x, y, width, colour, name, first, second) {
  return svg("g", {transform: `translate(${x} ${y})`, opacity: first === "holds nothing" ? 0.55 : 1},
    svg("rect", {width, height: DEVICES.box, rx: 8, class: "card"}), svg("rect", {width: 8, height: DEVICES.box, rx: 3, fill: colour}),
    text(22, 24, name, {"font-weight": 600}), text(22, 44, first, {class: "label"}), text(22, 62, second, {class: "soft label"}));
}

// What each device sends in a ring all-gather of the output: (n - 1) / n of it.
const gathered = (cost, devices) => Math.round(cost.traffic.output * (devices - 1) / devices);

function devicesWords(spec, devices, held, cost, next) {
  if (devices === 1) return "One device holds everything. Groups need nothing from each other: move the slider, and they part.";
  const most = Math.max(...held.map(([first, end]) => end - first)), idle = held.filter(([first, end]) => end === first).length;
  const load = idle ? `${plural(idle, "device")} of ${devices} ${idle === 1 ? "holds" : "hold"} nothing: there ${spec.groups === 1 ? "is" : "are"} only ${plural(spec.groups, "group")}.`
    : spec.groups % devices === 0 ? `Each device does 1/${devices} of the work.`
    : `The fullest device does ${(100 * most / spec.groups).toFixed(1)} % of the work, so the layer is at best ${ratioText(spec.groups / most)} times as fast.`;
  return next === "same" ? `${load} Nothing crosses: each device has what its groups of the next layer read.`
    : `${load} A dense layer reads all channels, so the output crosses: an all-gather of ${bytesText(cost.traffic.output)}, of which each device sends ` +
      `${bytesText(gathered(cost, devices))} in a ring.`;
}
