// Small helpers that make elements, and the look that all scenes share.

// COLOURS are those of the pictures. The number is written beside each colour.
const colourOf = group => COLOURS[group % COLOURS.length];
const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter(child => child != null));
  return element;
}

const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const html = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);

const text = (x, y, words, more) => svg("text", {x, y, ...more}, words);

// A picture that scales with its column; `label` is read out in its place.
const picture = (width, height, label, ...children) =>
  svg("svg", {viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": label, class: "picture"}, ...children);

// Something to press: with the mouse, and with Enter or the space bar.
function pressable(element, label, press) {
  element.setAttribute("tabindex", "0");
  element.setAttribute("role", "button");
  element.setAttribute("aria-label", label);
  element.classList.add("press");
  element.addEventListener("click", press);
  element.addEventListener("keydown", event => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    press();
  });
  return element;
}

const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

// Calls frame(t) with t from 0 to 1 over `ms`; at once with 1 where the reader wants no motion. Returns what stops it.
function animate(frame, ms = 350) {
  if (still()) {
    frame(1);
    return () => {};
  }
  let stopped = false;
  const start = performance.now();
  const step = now => {
    if (stopped) return;
    const t = Math.min(1, (now - start) / ms);
    frame(t * t * (3 - 2 * t));
    if (t < 1) requestAnimationFrame(step);
  };
  frame(0);
  requestAnimationFrame(step);
  return () => { stopped = true; };
}

const between = (a, b, t) => a + (b - a) * t;

// Saves what a scene draws.
function download(name, content, type) {
  const link = html("a", {href: URL.createObjectURL(new Blob([content], {type})), download: name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// The picture as a file of its own: styles that come from the page are written into it.
function standalone(drawn) {
  const copy = drawn.cloneNode(true), background = getComputedStyle(document.body).backgroundColor;
  const properties = ["fill", "stroke", "stroke-width", "stroke-opacity", "opacity", "font-size", "font-family", "font-weight",
                      "text-anchor", "stroke-dasharray"];
  const originals = drawn.querySelectorAll("*");
  copy.querySelectorAll("*").forEach((element, i) => {
    const style = getComputedStyle(originals[i]);
    for (const property of properties) element.style.setProperty(property, style.getPropertyValue(property));
  });
  copy.setAttribute("xmlns", SVG);
  const {width, height} = drawn.viewBox.baseVal;
  copy.prepend(svg("rect", {width, height, fill: background}));
  return {source: new XMLSerializer().serializeToString(copy), width, height};
}

function savePng(drawn, name) {
  const {source, width, height} = standalone(drawn), image = new Image(), scale = 2;
  image.onload = () => {
    const canvas = html("canvas", {width: width * scale, height: height * scale});
    canvas.getContext("2d").drawImage(image, 0, 0, width * scale, height * scale);
    canvas.toBlob(blob => download(name, blob, "image/png"));
  };
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(source)}`;
}
