// Scene: two grouped layers in a row, with and without a channel shuffle between them. Which outputs does an input reach?

const SHUFFLE = {width: 900, top: 56, row: 18, panel: 420};

// A small layer of the same kind that fits the picture: as many groups as it can, and as many channels a group.
function sample(spec) {
  const groups = Math.min(spec.groups, 6), each = Math.max(1, Math.min(Math.floor(24 / groups), groups === 1 ? 6 : groups));
  return {groups, each, n: groups * each};
}

function shuffleScene(state, spec, set) {
  const small = sample(spec), pin = /^group(\d+)$/.exec(state.pin), group = Math.min(pin ? Number(pin[1]) : 0, small.groups - 1);
  const height = SHUFFLE.top + small.n * SHUFFLE.row + 16;
  const panels = [false, true].map(shuffled => shufflePanel(small, group, shuffled, 20 + (shuffled ? 1 : 0) * (SHUFFLE.panel + 30), set));
  return {
    drawn: picture(SHUFFLE.width, height, "Two grouped layers without and with a channel shuffle", panels),
    says: spec.groups === 1 ? "One group: a shuffle changes nothing, as every input reaches every output already. Choose more groups."
      : shuffleWords(spec, small, group),
  };
}

function shuffleWords(spec, small, group) {
  const each = spec.outputs_per_group, reached = reachOfTwo(spec.out_channels, spec.groups, group % spec.groups, true).size;
  const drawn = spec.out_channels === small.n && spec.groups === small.groups ? "" : ` The picture has ${small.n} channels in ${small.groups} groups.`;
  const here = reached === spec.groups ? `spreads to all ${spec.groups} groups of the next layer`
    : `spreads to ${reached} of the ${spec.groups} groups, as it has ${plural(each, "output")}: to reach all, a group needs as many channels as there are groups`;
  return `Without a shuffle, a group only ever sees its own inputs, however many layers follow: ${spec.groups} networks side by side. ` +
    `With one, each group ${here}.${drawn} Press a group to follow it.`;
}

function shufflePanel({groups, each, n}, group, shuffled, x, set) {
  const columns = [60, 160, 270, 370].map(offset => x + offset), y = channel => SHUFFLE.top + channel * SHUFFLE.row;
  const of = channel => Math.floor(channel / each), parts = [], reached = reachOfTwo(n, groups, group, shuffled);
  parts.push(text(x + SHUFFLE.panel / 2, 18, shuffled ? "with a channel shuffle" : "without", {"text-anchor": "middle", "font-weight": 600}));
  ["in", "middle", shuffled ? "shuffled" : "", "out"].forEach((name, i) => parts.push(text(columns[i], 40, name, {"text-anchor": "middle", class: "soft"})));
  const wire = (from, a, to, b, colour, strong) => svg("path", {fill: "none", stroke: colour, "stroke-width": 1.4, opacity: strong ? 0.85 : 0.1,
    d: `M${columns[from]} ${y(a)}C${(columns[from] + columns[to]) / 2} ${y(a)} ${(columns[from] + columns[to]) / 2} ${y(b)} ${columns[to]} ${y(b)}`});
  const source = place => (shuffled ? (place % groups) * each + Math.floor(place / groups) : place);
  for (let a = 0; a < n; a++)
    for (let b = 0; b < n; b++) {
      if (of(a) !== of(b)) continue;
      parts.push(wire(0, a, 1, b, colourOf(of(a)), of(a) === group));
      // The second layer's wires carry what their source saw.
      parts.push(wire(2, a, 3, b, colourOf(of(source(a))), of(source(a)) === group));
    }
  for (let place = 0; place < n; place++) parts.push(wire(1, source(place), 2, place, colourOf(of(source(place))), of(source(place)) === group));
  for (let channel = 0; channel < n; channel++) {
    parts.push(svg("circle", {cx: columns[1], cy: y(channel), r: 4.5, fill: colourOf(of(channel)), opacity: of(channel) === group ? 1 : 0.25}),
               svg("circle", {cx: columns[2], cy: y(channel), r: 4.5, fill: colourOf(of(source(channel))), opacity: of(source(channel)) === group ? 1 : 0.25}),
               svg("rect", {x: columns[3] - 5, y: y(channel) - 5, width: 10, height: 10, fill: reached.has(of(channel)) ? colourOf(group) : "none",
                 class: reached.has(of(channel)) ? "" : "empty"}));
  }
  for (let each_group = 0; each_group < groups; each_group++) {
    const box = svg("g", {}, Array.from({length: each}, (_, i) => svg("circle", {cx: columns[0], cy: y(each_group * each + i), r: 5.5,
      fill: colourOf(each_group), opacity: each_group === group ? 1 : 0.35})),
      text(columns[0] - 12, y(each_group * each + (each - 1) / 2) + 4, `group ${each_group}`, {"text-anchor": "end", class: "label"}));
    parts.push(pressable(box, `follow group ${each_group}${shuffled ? ", with the shuffle" : ""}`, () => set({pin: `group${each_group}`})));
  }
  return svg("g", {}, parts);
}
