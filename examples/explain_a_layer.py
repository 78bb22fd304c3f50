"""Shows one layer in every form that an explanation takes. Writes its files into the current folder."""

import pathlib

import groupwise

conv = groupwise.nn.Conv2d(128, 128, 3, padding=1, groups=32, bias=False)
explanation = conv.explain(size=56)

print(explanation)
explanation.to_html("conv.html")
pathlib.Path("conv.svg").write_text(explanation.to_svg("wiring"), encoding="utf-8")

facts = explanation.to_dict()
saved = facts["dense"]["macs"]["forward"] / facts["macs"]["forward"]
print(
    f"\ngroups={facts['groups']} makes {saved:.0f} times fewer MACs, "
    f"and moves {facts['dense']['bytes'] / facts['bytes']:.2f} times fewer bytes"
)
