// All that the page shows follows from one flat object, which the address holds after its #: so any view can be shared.

const NUMBERS = {in_channels: 8, out_channels: 4, groups: 4, dims: 2, batch: 1, filter: 0, position: 0, devices: 2};
// One number for all dimensions, or one a dimension: 3 or 3x5.
const EXTENTS = {kernel_size: 5, stride: 1, padding: 0, dilation: 1, output_padding: 0, size: 56};
const WORDS = {scene: "wires", pin: "", layer: "", next: "same"};
const FLAGS = {transposed: false, bias: true};
const DEFAULTS = {...NUMBERS, ...EXTENTS, ...WORDS, ...FLAGS};
// Always written, so that a shared address says what it shows.
const ALWAYS = ["in_channels", "out_channels", "groups", "scene"];

// Returns a number, or an array of them; what is neither stays, and the check of the convolution says what is wrong with it.
function parseExtent(value) {
  const parts = value.trim().split(/[x×,]/);
  if (!parts.every(part => /^-?\d+$/.test(part))) return value;
  return parts.length > 1 ? parts.map(Number) : Number(parts[0]);
}

const extentText = value => (Array.isArray(value) ? value.join("x") : String(value));

function parseHash(hash) {
  const state = {...DEFAULTS};
  for (const part of hash.replace(/^#/, "").split("&")) {
    const [name, value = ""] = part.split("=").map(decoded);
    if (name in NUMBERS && /^-?\d+$/.test(value)) state[name] = Number(value);
    else if (name in EXTENTS && value) state[name] = parseExtent(value);
    else if (name in WORDS) state[name] = value;
    else if (name in FLAGS) state[name] = value === "1";
  }
  return state;
}

// A % that encodes nothing is read as it stands.
function decoded(word) {
  try {
    return decodeURIComponent(word);
  } catch {
    return word;
  }
}

function formatHash(state) {
  const fields = [];
  for (const [name, usual] of Object.entries(DEFAULTS)) {
    if (state[name] === usual && !ALWAYS.includes(name)) continue;
    fields.push(`${name}=${encodeURIComponent(name in FLAGS ? (state[name] ? "1" : "0") : extentText(state[name]))}`);
  }
  return `#${fields.join("&")}`;
}

const PRESETS = [
  ["1 · one group", {in_channels: 3, out_channels: 3, groups: 1}],
  ["2 · fewer outputs, groups=4", {in_channels: 8, out_channels: 4, groups: 4}],
  ["2 · fewer outputs, groups=2", {in_channels: 8, out_channels: 4, groups: 2}],
  ["3 · more outputs, groups=4", {in_channels: 4, out_channels: 8, groups: 4}],
  ["3 · more outputs, groups=2", {in_channels: 4, out_channels: 8, groups: 2}],
  ["4 · depthwise", {in_channels: 4, out_channels: 4, groups: 4}],
  ["4 · as many outputs, groups=2", {in_channels: 4, out_channels: 4, groups: 2}],
  ["AlexNet conv2", {in_channels: 96, out_channels: 256, groups: 2, padding: 2, size: 27}],
  ["AlexNet's two towers", {in_channels: 96, out_channels: 256, groups: 2, padding: 2, size: 27, scene: "devices", devices: 2, next: "dense"}],
  ["ResNeXt-50 32×4d", {in_channels: 128, out_channels: 128, groups: 32, kernel_size: 3, padding: 1}],
  ["ResNeXt block on 4 devices", {in_channels: 128, out_channels: 128, groups: 32, kernel_size: 3, padding: 1, scene: "devices", devices: 4, next: "dense"}],
  ["MobileNetV2 depthwise", {in_channels: 144, out_channels: 144, groups: 144, kernel_size: 3, padding: 1}],
  ["ShuffleNet 1×1, groups=3", {in_channels: 240, out_channels: 240, groups: 3, kernel_size: 1, size: 28, scene: "shuffle"}],
];

// A preset sets the convolution anew; scene and choices stay unless it names them.
const presetState = (state, preset) => ({...DEFAULTS, scene: state.scene, devices: state.devices, ...preset});

// Returns the state with other channels and the valid groups nearest below the ones that were asked for.
function withValidGroups(state) {
  try {
    const valid = validGroups(checkInteger("in_channels", state.in_channels, 1, MAX_CHANNELS),
                              checkInteger("out_channels", state.out_channels, 1, MAX_CHANNELS));
    if (valid.includes(state.groups)) return state;
    return {...state, groups: valid.filter(groups => groups <= state.groups).pop() ?? 1};
  } catch (error) {
    if (error instanceof BadSpec) return state;
    throw error;
  }
}
