// Scene: what groups promise, and what was measured. Work falls to 1/groups; time falls less.

const PAYMENT = {width: 900, height: 380, left: 70, right: 690, top: 24, bottom: 320};

function paymentScene(state, spec, set) {
  const names = [...new Set(MEASURED.rows.map(row => row.layer))];
  const layer = names.includes(state.layer) ? state.layer : names[0];
  const rows = MEASURED.rows.filter(row => row.layer === layer), groups = rows.map(row => row.groups);
  const dense = rows.find(row => row.groups === 1), P = PAYMENT;
  const series = [["work, 1/groups", rows.map(row => 1 / row.groups), "ink"],
                  ["least bytes", rows.map(row => row.bytes / dense.bytes), "soft"],
                  ["PyTorch", rows.map(row => row.pytorch / dense.pytorch), COLOURS[0]],
                  ["groupwise", rows.map(row => row.groupwise / dense.pytorch), COLOURS[1]]];
  const least = Math.min(...series.flatMap(([, values]) => values));
  const x = i => (groups.length > 1 ? between(P.left, P.right, i / (groups.length - 1)) : P.left);
  const y = value => between(P.top, P.bottom, Math.log(1 / value) / Math.log(1 / least));
  const parts = [];
  for (const value of [1, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001].filter(value => value >= least))
    parts.push(svg("path", {d: `M${P.left} ${y(value)}H${P.right}`, class: "rule"}),
               text(P.left - 8, y(value) + 4, value === 1 ? "dense" : `1/${Math.round(1 / value)}`, {"text-anchor": "end", class: "label"}));
  groups.forEach((count, i) => parts.push(text(x(i), P.bottom + 20, String(count), {"text-anchor": "middle", class: "label"})));
  parts.push(text((P.left + P.right) / 2, P.bottom + 42, "groups", {"text-anchor": "middle", class: "soft"}));
  // Labels at the right end keep a line's height from each other.
  const ends = series.map(([name, values, ink]) => ({name, ink, y: y(values[values.length - 1])})).sort((a, b) => a.y - b.y);
  ends.forEach((end, i) => { if (i && end.y < ends[i - 1].y + 16) end.y = ends[i - 1].y + 16; });
  for (const [name, values, ink] of series) {
    const colour = ink.startsWith("#") ? {stroke: ink} : {class: `line-${ink}`};
    parts.push(svg("path", {d: values.map((value, i) => `${i ? "L" : "M"}${x(i)} ${y(value)}`).join(""), fill: "none", "stroke-width": 2,
      "stroke-dasharray": name.startsWith("work") ? "5 4" : null, ...colour}));
    const end = ends.find(each => each.name === name);
    parts.push(text(P.right + 12, end.y + 4, name, ink.startsWith("#") ? {fill: ink, "font-weight": 600} : {class: ink}));
    values.forEach((value, i) => parts.push(svg("circle", {cx: x(i), cy: y(value), r: 3, ...(ink.startsWith("#") ? {fill: ink} : {class: `dot-${ink}`})},
      svg("title", {}, `${name}, groups=${groups[i]}: ${value.toPrecision(3)} of dense`))));
  }
  const select = html("select", {"data-keep": "layer", onchange: event => set({layer: event.target.value})},
    names.map(name => html("option", {value: name, selected: name === layer}, name)));
  const last = rows[rows.length - 1], factor = value => `1/${(1 / value).toPrecision(2)}`;
  return {
    drawn: picture(P.width, P.height, `Measured time of ${layer} by groups`, parts),
    controls: html("div", {class: "controls"}, html("label", {}, "layer", select)),
    says: `${layer}: with ${last.groups} groups the work falls to 1/${last.groups}, PyTorch's time to ${factor(last.pytorch / dense.pytorch)}, ` +
      `groupwise's to ${factor(last.groupwise / dense.pytorch)} of PyTorch's dense layer (${dense.pytorch.toPrecision(3)} ms). ` +
      `${MEASURED.about}. Your processor differs: measure with groupwise bench.`,
  };
}
