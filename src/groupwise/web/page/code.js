// Scene: code to copy, and what a wrong value answers.

function codeScene(state, spec) {
  const blocks = [["PyTorch", pytorchCode(spec, state)], ["groupwise, in Python", groupwiseCode(spec, state)], ["groupwise, in a terminal", commandOf(spec, state)]];
  const bad = firstWrong(spec);
  const drawn = html("div", {class: "codes"}, blocks.map(([name, code]) => {
    const copy = html("button", {type: "button"}, "copy");
    copy.addEventListener("click", () => navigator.clipboard.writeText(code).then(() => { copy.textContent = "copied"; }, () => {
      const range = document.createRange();
      range.selectNodeContents(copy.nextElementSibling);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      copy.textContent = "selected";
    }));
    return html("section", {}, html("h3", {}, name), copy, html("pre", {tabindex: "0"}, code));
  }), bad === null ? null : html("section", {}, html("h3", {}, `What groups=${bad} answers`), html("pre", {class: "bad", tabindex: "0"}, messageOf(spec, bad))));
  return {drawn, says: `Valid groups for ${thousands(spec.in_channels)} and ${thousands(spec.out_channels)} channels: ${listSome(spec.valid_groups, spec.groups)}.`};
}

// The smallest number of groups that these channels do not allow.
function firstWrong(spec) {
  for (let groups = 2; groups <= spec.valid_groups.length + 2; groups++) if (!spec.valid_groups.includes(groups)) return groups;
  return null;
}

function messageOf(spec, groups) {
  try {
    checkGroups(spec.in_channels, spec.out_channels, groups);
  } catch (error) {
    return `GroupwiseError: ${error.message}`;
  }
  return "";
}

const python = values => (new Set(values).size === 1 ? String(values[0]) : `(${values.join(", ")})`);

// The keyword arguments that differ from their defaults.
function optionsOf(spec) {
  const found = [["stride", 1], ["padding", 0], ["dilation", 1], ["output_padding", 0]]
    .filter(([name, usual]) => spec[name].some(value => value !== usual)).map(([name]) => `${name}=${python(spec[name])}`);
  if (spec.groups > 1) found.push(`groups=${spec.groups}`);
  if (!spec.bias) found.push("bias=False");
  return found;
}

function pytorchCode(spec, state) {
  const {input, output} = sizesOf(spec, state.size), name = `Conv${spec.transposed ? "Transpose" : ""}${spec.dims}d`;
  const call = [spec.in_channels, spec.out_channels, `kernel_size=${python(spec.kernel_size)}`, ...optionsOf(spec)].join(", ");
  return `import torch\n\nconv = torch.nn.${name}(${call})\nx = torch.randn(${[state.batch, spec.in_channels, ...input].join(", ")})\n\n` +
    `assert conv(x).shape == (${[state.batch, spec.out_channels, ...output].join(", ")})\n` +
    `assert conv.weight.shape == (${spec.weight_shape.join(", ")})`;
}

function groupwiseCode(spec, state) {
  const options = optionsOf(spec);
  if (spec.transposed) options.push("transposed=True");
  if (spec.dims !== 2) options.push(`dims=${spec.dims}`);
  const call = [spec.in_channels, spec.out_channels, python(spec.kernel_size), ...options].join(", ");
  return `import groupwise\n\nprint(groupwise.explain(${call}, size=${python(sizesOf(spec, state.size).input)}))`;
}

function commandOf(spec, state) {
  const by = values => (new Set(values).size === 1 ? values[0] : values.join("x"));
  const options = [["kernel-size", spec.kernel_size, null], ["size", sizesOf(spec, state.size).input, null], ["stride", spec.stride, 1],
                   ["padding", spec.padding, 0], ["dilation", spec.dilation, 1], ["output-padding", spec.output_padding, 0]]
    .filter(([, values, usual]) => usual === null || values.some(value => value !== usual)).map(([name, values]) => `--${name} ${by(values)}`);
  if (spec.dims !== 2) options.push(`--dims ${spec.dims}`);
  if (spec.transposed) options.push("--transposed");
  if (!spec.bias) options.push("--no-bias");
  return `groupwise explain ${spec.in_channels} ${spec.out_channels} --groups ${spec.groups} ${options.join(" ")}`;
}
