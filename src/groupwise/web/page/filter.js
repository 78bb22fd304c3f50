// Scene: one filter at one position. Its inputs, the kernel's slice for each, and the sum written out.

const FILTER = {width: 900, plane: 120, most: 4, top: 40};

function filterScene(state, spec, set) {
  const {input, output} = sizesOf(spec, state.size);
  const filter = Math.min(Math.max(0, state.filter), spec.out_channels - 1), group = groupOfOutput(spec, filter);
  const {inputs} = pathOf(spec, group), colour = colourOf(group);
  const positions = product(output), position = Math.min(Math.max(0, state.position), positions - 1);
  const at = unravel(position, output);
  const taps = at.map((o, axis) => tapsOf(spec, axis, o, input[axis]));
  const channels = Array.from({length: inputs[1] - inputs[0]}, (_, i) => inputs[0] + i);
  const shown = channels.length <= FILTER.most ? channels : [...channels.slice(0, FILTER.most - 2), null, channels[channels.length - 1]];
  const parts = [], step = FILTER.plane + 44;
  shown.forEach((channel, i) => {
    const y = FILTER.top + i * step;
    if (channel === null) {
      parts.push(text(150, y + FILTER.plane / 2, `… ${thousands(channels.length - FILTER.most + 1)} more inputs of the group`, {class: "soft"}));
      return;
    }
    parts.push(text(30, y - 8, `input ${channel}`, {class: "label"}), inputPlane(30, y, input, taps, spec.transposed ? spec.padding.map(() => 0) : spec.padding, colour),
               text(300, y - 8, weightName(spec, filter, channel), {class: "label"}), kernelSlice(300, y, taps, colour));
  });
  const height = FILTER.top + shown.length * step + 8, middle = FILTER.top + (shown.length - 1) * step / 2;
  parts.push(svg("path", {class: "rule", fill: "none", d: shown.map((_, i) => {
    const y = FILTER.top + i * step + FILTER.plane / 2;
    return `M440 ${y}C520 ${y} 520 ${middle + FILTER.plane / 2} 596 ${middle + FILTER.plane / 2}`;
  }).join("")}));
  const plane = outputPlane(620, middle, output, at, colour, found => set({position: ravel(found, output)}));
  parts.push(text(620, middle - 8, `output ${filter}, position (${at.join(", ")})`, {class: "label"}), plane);
  const drawn = picture(FILTER.width, height, `Filter ${filter} of ${specText(spec)} at position ${at.join(", ")}`, parts);
  const range = (label, value, most, change) => html("label", {}, html("span", {}, `${label} `, html("output", {}, String(value))),
    html("input", {type: "range", min: 0, max: most, value, "data-keep": label, oninput: event => change(Number(event.target.value))}));
  const names = ["depth", "row", "column"].slice(3 - spec.dims);
  const controls = html("div", {class: "controls"}, range("filter", filter, spec.out_channels - 1, value => set({filter: value})),
    at.map((o, axis) => range(names[axis], o, output[axis] - 1, value => {
      const next = [...at];
      next[axis] = value;
      set({position: ravel(next, output)});
    })));
  return {drawn, controls, says: filterWords(spec, filter, at, taps, inputs), sum: filterSum(spec, filter, at, taps, inputs)};
}

function unravel(position, sizes) {
  const at = [];
  for (let axis = sizes.length - 1; axis >= 0; axis--) {
    at.unshift(position % sizes[axis]);
    position = Math.floor(position / sizes[axis]);
  }
  return at;
}

const ravel = (at, sizes) => at.reduce((position, each, axis) => position * sizes[axis] + each, 0);

// The last two axes of a tensor, or a row.
const flat = values => (values.length === 1 ? [null, values[0]] : values.slice(-2));

// A plane of `sizes`, with room around it for positions that lie outside.
function frame(x, y, sizes, around = [0, 0]) {
  const [rows, columns] = flat(sizes).map(size => size ?? 1), [above, before] = around;
  const unit = FILTER.plane / Math.max(rows + 2 * above, columns + 2 * before);
  return {unit, rows, columns, element: svg("g", {transform: `translate(${x + before * unit} ${y + above * unit})`},
    svg("rect", {width: columns * unit, height: rows * unit, class: "void"}))};
}

function inputPlane(x, y, sizes, taps, padding, colour) {
  const [down, across] = flat(taps).map(axis => axis ?? [{position: 0, real: true}]);
  const {unit, element} = frame(x, y, sizes, flat(padding).map(pad => pad ?? 0));
  for (const row of down)
    for (const column of across) {
      const real = row.real && column.real, size = Math.max(1.5, unit * 0.92);
      element.append(svg("rect", {x: column.position * unit, y: row.position * unit, width: size, height: size,
        fill: real ? colour : "none", class: real ? "" : "padding"}));
    }
  return element;
}

function kernelSlice(x, y, taps, colour) {
  const [down, across] = flat(taps).map(axis => axis ?? [{tap: 0, real: true}]), unit = Math.min(22, FILTER.plane / Math.max(1, down.length, across.length));
  return svg("g", {transform: `translate(${x} ${y})`}, down.map((row, i) => across.map((column, j) =>
    svg("rect", {x: j * unit, y: i * unit, width: unit - 1, height: unit - 1, fill: colour, opacity: row.real && column.real ? 0.9 : 0.2}))));
}

function outputPlane(x, y, sizes, at, colour, choose) {
  const {unit, rows, columns, element} = frame(x, y, sizes), [row, column] = flat(at);
  const mark = Math.max(4, unit);
  element.append(svg("rect", {x: column * unit - (mark - unit) / 2, y: (row ?? 0) * unit - (mark - unit) / 2, width: mark, height: mark, fill: colour}));
  const pick = event => {
    const box = element.querySelector(".void").getBoundingClientRect();
    const cell = (from, to, here, count) => Math.min(count - 1, Math.max(0, Math.floor((here - from) / (to - from) * count)));
    const next = [...at];
    next[next.length - 1] = cell(box.left, box.right, event.clientX, columns);
    if (next.length > 1) next[next.length - 2] = cell(box.top, box.bottom, event.clientY, rows);
    choose(next);
  };
  element.addEventListener("pointerdown", pick);
  element.addEventListener("pointermove", event => event.buttons && pick(event));
  element.classList.add("scrub");
  return element;
}

function weightName(spec, filter, channel) {
  const rest = ", :".repeat(spec.dims);
  return spec.transposed ? `weight[${channel}, ${filter % spec.outputs_per_group}${rest}]`
                         : `weight[${filter}, ${channel % spec.inputs_per_filter}${rest}]`;
}

function filterWords(spec, filter, at, taps, inputs) {
  const count = product(taps.map(axis => axis.length)), real = product(taps.map(axis => axis.filter(tap => tap.real).length));
  const padded = count - real ? ` ${plural(count - real, "tap")} of ${count} ${count - real === 1 ? "meets" : "meet"} padding.` : "";
  return `Filter ${filter} reads ${plural(inputs[1] - inputs[0], "input")}, ${span(inputs)}, of ${thousands(spec.in_channels)}: ` +
    `${plural((inputs[1] - inputs[0]) * real, "product")} at position (${at.join(", ")}).${padded}`;
}

// The sum as a line of code, with the ranges that it runs over here.
function filterSum(spec, filter, at, taps, inputs) {
  const axes = ["d", "h", "w"].slice(3 - spec.dims);
  const index = axes.map((axis, i) => {
    const real = taps[i].filter(tap => tap.real);
    if (real.length === 0) return `${axis}: none`;
    const list = real.length <= 4 ? real : [...real.slice(0, 2), null, real[real.length - 1]];
    return `${axis}: ${list.map(tap => (tap ? `kernel ${tap.tap} × input ${tap.position}` : "…")).join(", ")}`;
  });
  const first = spec.transposed ? `weight[c, ${filter % spec.outputs_per_group}, kernel]` : `weight[${filter}, ${inputs[0] ? `c - ${inputs[0]}` : "c"}, kernel]`;
  return `y[${[filter, ...at].join(", ")}] = ${spec.bias ? `bias[${filter}] + ` : ""}sum over c in ${span(inputs)} and over taps of ` +
    `${first} · x[c, input]\n${index.join("\n")}`;
}
