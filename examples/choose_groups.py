"""Lists what every valid groups value of one layer costs. Nothing is timed; groupwise.bench does that."""

from groupwise import ConvSpec, cost

spec = ConvSpec(192, 256, 3, padding=1)
print(f"{'groups':>6} {'parameters':>11} {'MACs':>12} {'MB moved':>9} {'FLOP/B':>7}")
for groups in spec.valid_groups:
    at = cost(spec.with_groups(groups), size=28)
    print(f"{groups:6} {at.spec.parameters:11,} {at.macs.forward:12,} {at.bytes / 1e6:9.2f} {at.intensity:7.1f}")
