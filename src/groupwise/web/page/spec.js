// A convolution as numbers: the arithmetic of groupwise.ConvSpec, cost and Wiring. Nothing here knows the page.

const MAX_CHANNELS = 2 ** 24;
const MAX_EXTENT = 2 ** 31 - 1;
// The bytes of a float32 number.
const ITEM = 4;

class BadSpec extends Error {
  constructor(message, field) {
    super(message);
    this.field = field;
  }
}

const product = numbers => numbers.reduce((all, each) => all * each, 1);
const gcd = (a, b) => (b ? gcd(b, a % b) : a);

function checkInteger(name, value, least, most = MAX_EXTENT) {
  const rule = `${name} must be an integer from ${least} to ${most}`;
  if (!Number.isInteger(value)) throw new BadSpec(`${name}=${value} is not a whole number; ${rule}`, name);
  if (value < least) throw new BadSpec(`${name}=${value} is too small; ${rule}; the nearest is ${least}`, name);
  if (value > most) throw new BadSpec(`${name}=${value} is too large; ${rule}; the nearest is ${most}`, name);
  return value;
}

// Every common divisor of both channel counts, in ascending order.
function validGroups(inChannels, outChannels) {
  const common = gcd(inChannels, outChannels), low = [], high = [];
  for (let d = 1; d * d <= common; d++) {
    if (common % d) continue;
    low.push(d);
    if (d * d !== common) high.unshift(common / d);
  }
  return low.concat(high);
}

// The values as text: all of them, or above `most` the ends and those nearest to `near`.
function listSome(values, near, most = 12) {
  if (values.length <= most) return values.join(", ");
  const close = [...values].sort((a, b) => Math.abs(a - near) - Math.abs(b - near)).slice(0, 4);
  const keep = new Set([...values.slice(0, 3), values[values.length - 1], ...close]), shown = [];
  values.forEach((value, i) => {
    if (!keep.has(value)) return;
    if (i > 0 && !keep.has(values[i - 1])) shown.push("...");
    shown.push(String(value));
  });
  return `${shown.join(", ")} (${values.length} in all)`;
}

function checkGroups(inChannels, outChannels, groups) {
  const valid = validGroups(inChannels, outChannels);
  try {
    checkInteger("groups", groups, 1, MAX_CHANNELS);
  } catch (error) {
    throw new BadSpec(`${error.message}; valid groups: ${listSome(valid)}`, "groups");
  }
  if (inChannels % groups === 0 && outChannels % groups === 0) return groups;
  const keep = [["in_channels", inChannels], ["out_channels", outChannels]].filter(([, n]) => n % groups).map(([name, n]) => {
    const near = [Math.floor(n / groups) * groups, (Math.floor(n / groups) + 1) * groups].filter(m => m);
    return `${name} ${near.join(" or ")}`;
  });
  throw new BadSpec(
    `groups=${groups} must divide in_channels=${inChannels} and out_channels=${outChannels}; valid groups: ` +
    `${listSome(valid, groups)}; to keep groups=${groups} use ${keep.join(" and ")}`, "groups");
}

// Returns a convolution with everything that follows from its arguments; throws BadSpec. Numbers a dimension are arrays.
function makeSpec(given) {
  const spec = {in_channels: checkInteger("in_channels", given.in_channels, 1, MAX_CHANNELS),
                out_channels: checkInteger("out_channels", given.out_channels, 1, MAX_CHANNELS)};
  spec.groups = checkGroups(spec.in_channels, spec.out_channels, given.groups ?? 1);
  const dims = checkInteger("dims", given.dims ?? 2, 1, 3);
  const each = (name, value, least) => {
    const entries = Array.isArray(value) ? value : Array(dims).fill(value);
    if (entries.length !== dims)
      throw new BadSpec(`${name}=${entries.join("x")} has ${entries.length} values; a ${dims}-D convolution takes one or ${dims}`, name);
    return entries.map(entry => checkInteger(name, entry, least));
  };
  spec.dims = dims;
  spec.kernel_size = each("kernel_size", given.kernel_size, 1);
  spec.stride = each("stride", given.stride ?? 1, 1);
  spec.padding = each("padding", given.padding ?? 0, 0);
  spec.dilation = each("dilation", given.dilation ?? 1, 1);
  spec.transposed = Boolean(given.transposed);
  spec.bias = given.bias ?? true;
  spec.output_padding = each("output_padding", given.output_padding ?? 0, 0);
  spec.output_padding.forEach((extra, i) => {
    if (!spec.transposed && extra)
      throw new BadSpec(`output_padding=${extra} is for transposed convolutions; plain ones take 0`, "output_padding");
    const most = Math.max(spec.stride[i], spec.dilation[i]) - 1;
    if (extra > most)
      throw new BadSpec(`output_padding=${extra} must be less than the stride (${spec.stride[i]}) or the dilation ` +
        `(${spec.dilation[i]}); the largest valid value is ${most}`, "output_padding");
  });
  spec.op = `conv${spec.transposed ? "_transpose" : ""}${dims}d`;
  spec.kind = spec.groups === 1 ? "dense" : spec.groups === spec.in_channels ? "depthwise" : "grouped";
  spec.inputs_per_filter = spec.in_channels / spec.groups;
  spec.outputs_per_group = spec.out_channels / spec.groups;
  spec.weight_shape = spec.transposed ? [spec.in_channels, spec.outputs_per_group, ...spec.kernel_size]
                                      : [spec.out_channels, spec.inputs_per_filter, ...spec.kernel_size];
  spec.weights = product(spec.weight_shape);
  spec.parameters = spec.weights + (spec.bias ? spec.out_channels : 0);
  spec.valid_groups = validGroups(spec.in_channels, spec.out_channels);
  spec.connected_pairs = spec.in_channels * spec.outputs_per_group;
  spec.all_pairs = spec.in_channels * spec.out_channels;
  return spec;
}

const withGroups = (spec, groups) => makeSpec({...spec, groups});

// One line: operator, channels, kernel, the options that differ from their defaults, groups.
function specText(spec) {
  const by = values => values.join("×"), facts = [];
  for (const [name, usual] of [["stride", 1], ["padding", 0], ["dilation", 1], ["output_padding", 0]])
    if (spec[name].some(value => value !== usual)) facts.push(`${name} ${by(spec[name])}`);
  const channels = `${thousands(spec.in_channels)} → ${thousands(spec.out_channels)}`;
  return [`${spec.op} ${channels}`, `kernel ${by(spec.kernel_size)}`, ...facts, `groups=${spec.groups}`].join(", ");
}

const thousands = number => String(number).replace(/\B(?=(\d{3})+$)/g, ",");

// The channels that one group connects, as [first, last + 1).
function pathOf(spec, group) {
  const n = spec.inputs_per_filter, m = spec.outputs_per_group;
  return {group, inputs: [group * n, (group + 1) * n], outputs: [group * m, (group + 1) * m]};
}

const groupOfInput = (spec, channel) => Math.floor(channel / spec.inputs_per_filter);
const groupOfOutput = (spec, channel) => Math.floor(channel / spec.outputs_per_group);

function outputLength(spec, axis, length) {
  const pad = spec.padding[axis], stride = spec.stride[axis], dilation = spec.dilation[axis], kernel = spec.kernel_size[axis];
  const reach = dilation * (kernel - 1) + 1;
  const found = spec.transposed ? (length - 1) * stride - 2 * pad + reach + spec.output_padding[axis]
                                : Math.floor((length + 2 * pad - reach) / stride) + 1;
  if (found >= 1) return found;
  const fix = spec.transposed
    ? `padding ${pad} cuts away all of it; use padding of at most ${pad - Math.floor((2 - found) / 2)}`
    : `the kernel reaches over ${reach} positions (kernel_size ${kernel}, dilation ${dilation}), more than the padded input of ` +
      `${length} + ${pad} + ${pad}; use size >= ${reach - 2 * pad}, padding >= ${Math.ceil((reach - length) / 2)} or a smaller kernel`;
  throw new BadSpec(`size=${length} gives no output in dimension ${axis}: ${fix}`, "size");
}

function sizesOf(spec, size) {
  const given = (Array.isArray(size) ? size : Array(spec.dims).fill(size)).map(length => checkInteger("size", length, 1));
  return {input: given, output: given.map((length, axis) => outputLength(spec, axis, length))};
}

// The input positions that output position o of one axis reads, and through which tap; plain convolutions.
// Of a transposed one: the input positions that write to it.
function tapsOf(spec, axis, o, length) {
  const pad = spec.padding[axis], stride = spec.stride[axis], dilation = spec.dilation[axis], found = [];
  for (let tap = 0; tap < spec.kernel_size[axis]; tap++) {
    let position = o * stride - pad + tap * dilation;
    if (spec.transposed) {
      const far = o + pad - tap * dilation;
      if (far % stride) continue;
      position = far / stride;
    }
    found.push({tap, position, real: position >= 0 && position < length});
  }
  return found;
}

// What it costs on a batch of inputs of one size: MACs of each pass, least bytes, intensity. Exact below 2 ** 53.
function costOf(spec, size, batch = 1) {
  const {input, output} = sizesOf(spec, size);
  const positions = product(spec.transposed ? input : output);
  const macs = batch * spec.in_channels * spec.outputs_per_group * positions * product(spec.kernel_size);
  let real = batch * spec.in_channels * spec.outputs_per_group;
  input.forEach((length, axis) => real *= realTaps(spec, axis, length, output[axis]));
  const traffic = {input: ITEM * batch * spec.in_channels * product(input), weight: ITEM * spec.weights,
                   output: ITEM * batch * spec.out_channels * product(output)};
  const bytes = traffic.input + traffic.weight + traffic.output;
  return {input_size: input, output_size: output, macs, macs_on_padding: macs - real, traffic, bytes,
          intensity: bytes ? 2 * macs / bytes : 0};
}

// How many pairs of position and tap along one axis touch a real value.
function realTaps(spec, axis, length, outLength) {
  const positions = spec.transposed ? length : outLength, limit = spec.transposed ? outLength : length;
  const pad = spec.padding[axis], stride = spec.stride[axis], dilation = spec.dilation[axis];
  let found = 0;
  for (let tap = 0; tap < spec.kernel_size[axis]; tap++) {
    const low = tap * dilation - pad;
    const first = low >= 0 ? 0 : Math.ceil(-low / stride);
    const last = Math.min(positions - 1, Math.floor((limit - 1 - low) / stride));
    found += Math.max(0, last - first + 1);
  }
  return found;
}

// A count in three digits: 225, 14.5 M.
function countText(value) { return scaled(value, ["", " k", " M", " G", " T", " P", " E"]); }
function bytesText(value) { return scaled(value, [" B", " kB", " MB", " GB", " TB", " PB", " EB"]); }

function scaled(value, units) {
  let scale = 0;
  while (Math.abs(value) >= 999.5 && scale < units.length - 1) {
    value /= 1000;
    scale++;
  }
  if (scale === 0) return thousands(Math.round(value)) + units[0];
  const digits = Math.abs(value) >= 99.95 ? 0 : Math.abs(value) >= 9.995 ? 1 : 2;
  return value.toFixed(digits) + units[scale];
}

// A factor in at most three digits: 4, 31.2, 128.
const ratioText = value => (value >= 100 || Number.isInteger(value) ? thousands(Math.round(value)) : String(Number(value.toPrecision(3))));

const span = ([first, end]) => (end - first > 1 ? `${first}-${end - 1}` : String(first));
const plural = (number, noun) => `${thousands(number)} ${noun}${number === 1 ? "" : "s"}`;
