// Scene: which inputs reach which outputs, and which blocks of the weight exist. Nodes and wires move when groups change.

const WIRES = {width: 900, left: 150, right: 470, top: 34, row: 17, gap: 12};

// Where each node of a side stands: rows of the height that both sides of a block need, blocks apart.
function placeBlocks(blocks) {
  let y = WIRES.top;
  const placed = [];
  for (const block of blocks) {
    const rows = block.left_out ? 1 : Math.max(block.inputs.length, block.outputs.length), height = rows * WIRES.row;
    const spread = count => Array.from({length: count}, (_, i) => y + height * (i + 0.5) / count);
    placed.push(block.left_out ? {...block, y: y + height / 2}
                               : {...block, in_y: spread(block.inputs.length), out_y: spread(block.outputs.length)});
    y += height + (blocks.length > 1 ? WIRES.gap : 0);
  }
  return {placed, height: y + 10};
}

// All nodes by the channels that they stand for, each with its height and its colour.
function nodesBy(placed, side) {
  const nodes = [];
  for (const block of placed)
    if (!block.left_out) block[side].forEach((channels, i) =>
      nodes.push({channels, group: block.group, y: block[side === "inputs" ? "in_y" : "out_y"][i]}));
  return nodes;
}

let lastWires = null;

function wiresScene(state, spec, set) {
  const {placed, height} = placeBlocks(foldGroups(spec));
  const ins = nodesBy(placed, "inputs"), outs = nodesBy(placed, "outputs");
  const pin = pinned(state, spec);
  const lit = (side, node) => !pin || (pin.side === side ? node.channels[0] <= pin.channel && pin.channel < node.channels[1]
                                                         : node.group === pin.group);
  const wires = svg("g", {fill: "none", "stroke-width": 1.6}), dots = svg("g");
  const moving = [];
  for (const a of ins)
    for (const b of outs) {
      if (a.group !== b.group) continue;
      const strong = lit("inputs", a) && lit("outputs", b);
      const wire = svg("path", {stroke: colourOf(a.group), class: "wire", opacity: strong ? 0.85 : 0.12});
      wires.append(wire);
      moving.push(t => {
        const ya = moved("inputs", a, t), yb = moved("outputs", b, t), middle = (WIRES.left + WIRES.right) / 2;
        wire.setAttribute("d", `M${WIRES.left} ${ya}C${middle} ${ya} ${middle} ${yb} ${WIRES.right} ${yb}`);
      });
    }
  const label = ([first, end], noun) => (end - first > 1 ? `${noun} channels ${first} to ${end - 1}` : `${noun} channel ${first}`);
  const node = (side, each) => {
    const input = side === "inputs", x = input ? WIRES.left : WIRES.right, many = each.channels[1] - each.channels[0] > 1;
    const mark = input ? svg("circle", {r: many ? 7 : 5.5}) : svg("rect", {x: -6, y: -6, width: 12, height: 12, rx: many ? 4 : 1});
    const group = svg("g", {fill: colourOf(each.group), opacity: lit(side, each) ? 1 : 0.25}, mark,
      text(input ? -14 : 14, 4, span(each.channels), {class: "label", "text-anchor": input ? "end" : "start"}));
    const name = `${input ? "in" : "out"}${each.channels[0]}`;
    pressable(group, `${label(each.channels, input ? "input" : "output")}, group ${each.group}; follow`,
      () => set({pin: state.pin === name ? "" : name}));
    if (state.pin === name) group.setAttribute("aria-pressed", "true");
    dots.append(group);
    moving.push(t => group.setAttribute("transform", `translate(${x} ${moved(side, each, t)})`));
  };
  ins.forEach(each => node("inputs", each));
  outs.forEach(each => node("outputs", each));
  const names = svg("g", {class: "soft"});
  for (const block of placed) {
    if (block.left_out) {
      names.append(text((WIRES.left + WIRES.right) / 2, block.y + 4, `… ${thousands(block.left_out)} more groups of the same shape`,
        {"text-anchor": "middle"}));
    } else if (spec.groups > 1) {
      const middle = (block.in_y[0] + block.in_y[block.in_y.length - 1]) / 2;
      names.append(text(WIRES.left - 78, middle + 4, `group ${block.group}`, {"text-anchor": "end", class: "label"}));
    }
  }
  const before = lastWires;
  lastWires = {inputs: heights(ins), outputs: heights(outs)};
  // A node starts where the node that held its first channel stood.
  function moved(side, each, t) {
    const start = before?.[side].find(old => each.channels[0] >= old.channels[0] && each.channels[0] < old.channels[1]);
    return between(start ? start.y : each.y, each.y, t);
  }
  const weight = weightBlocks(spec, pin, 560, WIRES.top, colourOf);
  const total = Math.max(height, weight.height + WIRES.top + 20);
  const drawn = picture(WIRES.width, total, `Wiring of ${specText(spec)}`,
    text(WIRES.left, 16, plural(spec.in_channels, "input"), {"text-anchor": "middle", class: "soft"}),
    text(WIRES.right, 16, plural(spec.out_channels, "output"), {"text-anchor": "middle", class: "soft"}),
    names, wires, dots, weight.element);
  const stop = animate(t => moving.forEach(move => move(t)));
  return {drawn, stop, says: wiresWords(spec, pin)};
}

const heights = nodes => nodes.map(({channels, y}) => ({channels, y}));

// The channel that the reader follows: {side, channel, group}, or null.
function pinned(state, spec) {
  const found = /^(in|out)(\d+)$/.exec(state.pin);
  if (!found) return null;
  const side = found[1] === "in" ? "inputs" : "outputs", channel = Number(found[2]);
  if (channel >= (side === "inputs" ? spec.in_channels : spec.out_channels)) return null;
  return {side, channel, group: side === "inputs" ? groupOfInput(spec, channel) : groupOfOutput(spec, channel)};
}

function wiresWords(spec, pin) {
  if (pin) {
    const path = pathOf(spec, pin.group);
    return pin.side === "inputs"
      ? `Input ${pin.channel} is in group ${pin.group}: it reaches ${plural(spec.outputs_per_group, "output")}, ${span(path.outputs)}, ` +
        `and none of the other ${thousands(spec.out_channels - spec.outputs_per_group)}.`
      : `Output ${pin.channel} is in group ${pin.group}: its filter reads ${plural(spec.inputs_per_filter, "input")}, ${span(path.inputs)}, ` +
        `and none of the other ${thousands(spec.in_channels - spec.inputs_per_filter)}.`;
  }
  if (spec.kind === "dense") return "One group: every input reaches every output. Move the slider, and they part.";
  const share = `${thousands(spec.connected_pairs)} of ${thousands(spec.all_pairs)} channel pairs (1/${thousands(spec.groups)})`;
  const each = `${plural(spec.inputs_per_filter, "input")} to ${plural(spec.outputs_per_group, "output")}`;
  return `${spec.kind === "depthwise" ? "Depthwise: e" : "E"}ach group joins ${each}. Connected: ${share}. Press a channel to follow it.`;
}

// The weight as blocks, outputs down and inputs across: what exists in colour, what does not in grey.
function weightBlocks(spec, pin, x, y, colour) {
  const side = 240, rows = spec.out_channels, columns = spec.in_channels, unit = side / Math.max(rows, columns);
  const width = unit * columns, height = unit * rows, group = svg("g", {transform: `translate(${x} ${y})`});
  group.append(text(0, -8, "weights: outputs down, inputs across", {class: "soft"}),
               svg("rect", {width, height, class: "void"}));
  const most = 512, shown = Math.min(spec.groups, most);
  for (let i = 0; i < shown; i++) {
    // Of more groups than there are pixels, even ones stand for all.
    const {group: number, inputs, outputs} = pathOf(spec, Math.floor(i * spec.groups / shown));
    group.append(svg("rect", {x: inputs[0] * unit, y: outputs[0] * unit, width: (inputs[1] - inputs[0]) * unit,
      height: (outputs[1] - outputs[0]) * unit, fill: colour(number), opacity: !pin || pin.group === number ? 0.9 : 0.25}));
  }
  if (Math.max(rows, columns) <= 32) {
    const lines = [];
    for (let i = 0; i <= columns; i++) lines.push(`M${i * unit} 0V${height}`);
    for (let i = 0; i <= rows; i++) lines.push(`M0 ${i * unit}H${width}`);
    group.append(svg("path", {d: lines.join(""), class: "gap"}));
  }
  if (pin) {
    const d = pin.side === "inputs" ? `M${(pin.channel + 0.5) * unit} 0V${height}` : `M0 ${(pin.channel + 0.5) * unit}H${width}`;
    group.append(svg("path", {d, class: "follow"}));
  }
  const shape = `stored: ${spec.weight_shape.join(" × ")} (${spec.transposed ? "in, out/groups" : "out, in/groups"}, kernel)`;
  group.append(text(0, height + 18, shape, {class: "label"}),
               text(0, height + 36, `${plural(spec.weights, "weight")}${spec.bias ? ` + ${plural(spec.out_channels, "bias value")}` : ""}`, {class: "soft"}));
  return {element: group, height: height + 50};
}
