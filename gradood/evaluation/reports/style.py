"""How reports look: colours for light and dark, and the style sheet that uses them."""

#: By name: on white, as figures are drawn, and what a dark page shows instead.
COLOURS = {
    "ink": ("#1d2733", "#e4e9ee"),
    "soft": ("#5a6977", "#9fadba"),
    "line": ("#dfe5eb", "#303b46"),
    "card": ("#fffffe", "#1a2129"),
    "ground": ("#f5f7f9", "#10151a"),
    "shade": ("#e6f2ec", "#1e3a30"),
    "blue": ("#2a6f97", "#6cb2dc"),
    "red": ("#d1495b", "#f2798a"),
    "green": ("#3a7d44", "#7bc487"),
    "orange": ("#b5651d", "#e7a35c"),
    "violet": ("#6a4c93", "#b394dd"),
    "teal": ("#107c82", "#4fc3c8"),
    "olive": ("#857010", "#d1bb53"),
    "grey": ("#8a949e", "#8b96a1"),
}

NORMAL, ANOMALOUS = COLOURS["blue"][0], COLOURS["red"][0]


def _variables(which: int) -> str:
    return " ".join(f"--{name}: {pair[which]};" for name, pair in COLOURS.items())


STYLE = (
    f"""
:root {{ color-scheme: light dark; {_variables(0)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(1)} }} }}
"""
    + """
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 0 0 4px; }
h3 { font-size: 16px; margin: 20px 0 6px; overflow-wrap: anywhere; }
p { margin: 0 0 14px; max-width: 78ch; overflow-wrap: anywhere; }
.soft { color: var(--soft); }
section, .tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
section { padding: 24px; margin-top: 20px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 14px;
         margin-top: 24px; }
.tile { padding: 16px 18px; }
.tile b { display: block; font-size: 28px; line-height: 1.2; color: var(--blue);
          overflow-wrap: anywhere; }
.tile span { color: var(--soft); font-size: 14px; line-height: 1.35; display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px;
        font-variant-numeric: tabular-nums; }
thead th { font-weight: 600; color: var(--soft); vertical-align: bottom;
           border-bottom: 2px solid var(--line); }
th, td { text-align: right; padding: 6px 8px; border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; font-weight: 600; overflow-wrap: anywhere; min-width: 9em; }
td.text { text-align: left; overflow-wrap: anywhere; min-width: 14em; }
tr.mean td { font-weight: 600; }
tr.part th { font-weight: 400; padding-left: 24px; }
td small { color: var(--soft); display: block; font-size: 12px; }
td.best { background: var(--shade); }
dl { margin: 12px 0 0; display: grid; grid-template-columns: minmax(8em, max-content) 1fr;
     gap: 6px 18px; font-size: 14px; }
dt { font-weight: 600; } dd { margin: 0; color: var(--soft); overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr));
         gap: 18px; margin: 8px 0; }
.plots.wide { grid-template-columns: 1fr; overflow-x: auto; }
.plots svg { width: 100%; max-width: 480px; height: auto; display: block; stroke-linejoin: round;
             stroke-linecap: butt; }
.plots.wide svg { min-width: 700px; max-width: none; }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr));
          gap: 8px 32px; align-items: center; }
.beside .plots { grid-template-columns: 1fr; }
.gallery { display: grid; gap: 14px; margin: 8px 0;
           grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
.gallery.small { grid-template-columns: repeat(auto-fill, minmax(84px, 1fr)); gap: 8px; }
figure { margin: 0; font-size: 12px; line-height: 1.4; color: var(--soft); min-width: 0;
         font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
figure b { color: var(--ink); font-size: 14px; display: block; }
figure img, figure .none { width: 100%; aspect-ratio: 1; border-radius: 8px; display: block;
             object-fit: contain; border: 3px solid var(--grey); background: var(--ground);
             margin-bottom: 4px; }
figure .none { padding: 10px; }
figure img.pixels { image-rendering: pixelated; }
figure.normal img { border-color: var(--blue); }
figure.anomalous img { border-color: var(--red); }
figure ul { list-style: none; margin: 2px 0 0; padding: 0; }
@media (max-width: 600px) {
  main { padding: 24px 12px 40px; } section { padding: 16px 14px; }
  .tiles, .gallery { grid-template-columns: repeat(2, 1fr); } .tile { padding: 12px; }
  .gallery.small { grid-template-columns: repeat(4, 1fr); } .tile b { font-size: 22px; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 8px; }
}
@media print { section { break-inside: avoid; } }
"""
)
