"""The few SVG elements that all pictures are made of.

Places along the horizontal axis are percentages and sizes of type are pixels, so that a picture
grows and shrinks with the page while its lettering stays readable. Colours come from the classes
of the style sheet, hence light and dark. Text passes through ElementTree, which escapes it.
"""

from __future__ import annotations

from xml.etree import ElementTree as ET

from markupsafe import Markup

from edgecompress.report import format as fmt

__all__ = ["svg", "line", "text", "dot", "title", "px", "percent", "markup"]


def svg(height: float, style: str, width: str = "100%") -> ET.Element:
    """An empty picture as wide as its place and ``height`` pixels high."""
    element = ET.Element("svg", width=width, height=px(height), role="img")
    element.set("class", style)
    return element


def line(parent: ET.Element, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
    """A straight line; x in percent, y in pixels."""
    ends = {"x1": percent(x1), "x2": percent(x2), "y1": px(y1), "y2": px(y2)}
    ET.SubElement(parent, "line", ends).set("class", style)


def text(
    parent: ET.Element, x: float, y: float, words: str, style: str, why: str = ""
) -> ET.Element:
    """Words that start at ``x`` percent, on a base line at ``y`` pixels."""
    element = ET.SubElement(parent, "text", x=percent(x), y=px(y))
    element.set("class", style)
    element.text = fmt.clean(words)
    if why:
        title(element, why)
    return element


def dot(parent: ET.Element, x: float, y: float, radius: float, style: str, why: str) -> None:
    """A dot with a tooltip; x in percent, y and radius in pixels."""
    element = ET.SubElement(parent, "circle", cx=percent(x), cy=px(y), r=px(radius))
    element.set("class", style)
    title(element, why)


def title(parent: ET.Element, words: str) -> None:
    """The tooltip of an element."""
    ET.SubElement(parent, "title").text = fmt.clean(words)


def px(value: float) -> str:
    """A length in pixels."""
    return f"{value:g}"


def percent(value: float) -> str:
    """A place along the picture's width."""
    return f"{value:.2f}%"


def markup(element: ET.Element) -> Markup:
    """The picture as it goes into the page."""
    # Escaped: every text and attribute of the tree went through ElementTree's serializer.
    return Markup(ET.tostring(element, encoding="unicode"))
