"""Write the badges of the first page into nbs/images from settings.ini: `python tools/badges.py`. They are files, so that no page asks another server for them."""
from configparser import ConfigParser
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def badge(label, value, colour="#0072B2"):
    "A small two-part label as SVG."
    left, right = (6.6*len(text) + 12 for text in (label, value))
    text = lambda x, s: f'<text x="{x:.0f}" y="14" text-anchor="middle">{escape(s)}</text>'
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right:.0f}" height="20" role="img" aria-label="{escape(label)}: {escape(value)}">'
            f'<rect width="{left + right:.0f}" height="20" rx="3" fill="#555"/><path d="M{left:.0f} 0h{right - 3:.0f}a3 3 0 0 1 3 3v14a3 3 0 0 1 -3 3h-{right - 3:.0f}z" fill="{colour}"/>'
            f'<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">{text(left/2, label)}{text(left + right/2, value)}</g></svg>\n')


def badges():
    "File name and SVG of each badge."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT/"settings.ini", encoding="utf-8")
    c = config["DEFAULT"]
    licence = {"apache2": "Apache-2.0"}[c["license"]]
    about = {"version": c["version"], "python": c["min_python"] + "+", "licence": licence, "made with": "nbdev"}
    return {f"badge-{label.replace(' ', '-')}.svg": badge(label, value, "#D55E00" if label == "version" else "#0072B2") for label, value in about.items()}


if __name__ == "__main__":
    for name, svg in badges().items(): (ROOT/"nbs/images"/name).write_text(svg, encoding="utf-8")
