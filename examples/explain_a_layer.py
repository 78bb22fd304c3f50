"""Shows one layer in every form that an explanation takes. Writes its files into a temporary folder."""

import pathlib
import tempfile

import groupwise

conv = groupwise.nn.Conv2d(128, 128, 3, padding=1, groups=32, bias=False)
explanation = conv.explain(size=56)

print(explanation)
folder = pathlib.Path(tempfile.mkdtemp())
explanation.to_html(folder / "conv.html")
(folder / "conv.svg").write_text(explanation.to_svg("wiring"), encoding="utf-8")

facts = explanation.to_dict()
saved = facts["dense"]["macs"]["forward"] / facts["macs"]["forward"]
print(
    f"\ngroups={facts['groups']} makes {saved:.0f} times fewer MACs, "
    f"and moves {facts['dense']['bytes'] / facts['bytes']:.2f} times fewer bytes"
)
