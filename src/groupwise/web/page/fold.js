// Which channels a picture draws as one node, and which groups it leaves out: 1 to 2048 channels and more fit one screen.

const MOST_NODES = 24;

// Cuts [first, end) into at most `most` even runs.
function runs([first, end], most) {
  const size = end - first, count = Math.min(size, most), found = [];
  for (let i = 0; i < count; i++)
    found.push([first + Math.floor(i * size / count), first + Math.floor((i + 1) * size / count)]);
  return found;
}

// Returns the blocks of a picture from top to bottom: {group, inputs, outputs} with the channels of each node, or
// {left_out} for the groups between.
function foldGroups(spec, most = MOST_NODES) {
  const groups = spec.groups;
  const block = (group, nodes) => {
    const path = pathOf(spec, group);
    return {group, inputs: runs(path.inputs, nodes), outputs: runs(path.outputs, nodes)};
  };
  if (groups <= most) {
    const nodes = Math.max(1, Math.floor(most / groups));
    return Array.from({length: groups}, (_, group) => block(group, nodes));
  }
  const head = Math.floor(most / 3) - 1, tail = 2, blocks = [];
  for (let group = 0; group < head; group++) blocks.push(block(group, 2));
  blocks.push({left_out: groups - head - tail});
  for (let group = groups - tail; group < groups; group++) blocks.push(block(group, 2));
  return blocks;
}

// Returns the block and the node that hold a channel; null where it is left out.
function nodeOf(blocks, side, channel) {
  for (const block of blocks) {
    const at = block[side] ? block[side].findIndex(([first, end]) => channel >= first && channel < end) : -1;
    if (at >= 0) return {block, at};
  }
  return null;
}

// Returns which outputs of two grouped layers an input reaches, group by group of the second one: for each, whether some of its
// inputs come from there. Both layers have `groups` groups and n channels between them; a shuffle deals channel i of group j to
// place i * groups + j.
function reachOfTwo(n, groups, group, shuffled) {
  const each = n / groups, reached = new Set();
  for (let i = 0; i < each; i++) {
    const place = shuffled ? i * groups + group : group * each + i;
    reached.add(Math.floor(place / each));
  }
  return reached;
}

// Which of `units` each of `ranks` devices holds, as [first, end): the rule of groupwise.spec.Partition.
function partition(units, ranks) {
  const least = Math.floor(units / ranks), rest = units % ranks, most = least + (rest > 0 ? 1 : 0);
  return Array.from({length: ranks}, (_, rank) => {
    if (least && most * (ranks - 1) >= units)
      return [rank * least + Math.min(rank, rest), (rank + 1) * least + Math.min(rank + 1, rest)];
    return [Math.min(rank * most, units), Math.min((rank + 1) * most, units)];
  });
}
