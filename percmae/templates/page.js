// What a page can do beyond being read: tables sort, charts zoom, reconstructions slide over their
// originals. All of it is in the page; without scripts the page says the same.
"use strict";

const SVG = "http://www.w3.org/2000/svg";

// A table of class "sortable": a click on a heading sorts by its column, a second one backwards.
// A cell's data-value stands for its text; cells without a value come last either way.
function sortable(table) {
  const headings = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((each) => each.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [row, valueOf(row.cells[column])]);
      rows.sort(([, a], [, b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        const order = typeof a === "number" && typeof b === "number"
          ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
        return down ? -order : order;
      });
      body.append(...rows.map(([row]) => row));
    });
  });
}

function valueOf(cell) {
  const text = cell.dataset.value ?? cell.textContent.trim();
  if (text === "" || text === "–") return null;
  return Number.isNaN(Number(text)) ? text : Number(text);
}

// A field that leaves only the rows of a table which have its text in them.
function filtered(field) {
  const table = document.getElementById(field.dataset.filters);
  const shown = document.getElementById(`${field.dataset.filters}-shown`);
  field.closest(".find").hidden = false;
  field.addEventListener("input", () => {
    const wanted = field.value.trim().toLowerCase();
    const rows = [...table.tBodies[0].rows];
    rows.forEach((row) => { row.hidden = !row.textContent.toLowerCase().includes(wanted); });
    shown.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} shown`;
  });
}

// A chart whose data-plot says where its axes lie (in the units of its view box) and what they span.
// Drag to zoom into a rectangle, double-click for the whole; + - 0 and the arrow keys do it too.
function zoomable(svg) {
  const plot = JSON.parse(svg.dataset.plot);
  const scales = { x: plot.log_x ? Math.log10 : Number, y: plot.log_y ? Math.log10 : Number };
  const whole = {
    x: [plot.left, plot.right, ...plot.x.map(scales.x)],
    y: [plot.bottom, plot.top, ...plot.y.map(scales.y)],
  };
  const axes = [...svg.querySelectorAll("[id*='xtick_'], [id*='ytick_']")];
  const curve = (element) => !axes.some((tick) => tick.contains(element));
  const lines = [...svg.querySelectorAll("path[clip-path]")].filter(curve);
  const originals = lines.map((line) => line.getAttribute("d"));
  const marks = [...svg.querySelectorAll("[clip-path] use")].filter(curve)
    .map((mark) => [mark, Number(mark.getAttribute("x")), Number(mark.getAttribute("y"))]);
  const own = svg.appendChild(document.createElementNS(SVG, "g"));
  const frame = svg.appendChild(document.createElementNS(SVG, "rect"));
  frame.setAttribute("class", "zoom-frame");
  let view = { x: [whole.x[2], whole.x[3]], y: [whole.y[2], whole.y[3]] };

  const along = (axis, at) => whole[axis][2]
    + ((at - whole[axis][0]) / (whole[axis][1] - whole[axis][0])) * (whole[axis][3] - whole[axis][2]);
  const toView = (axis, value) => whole[axis][0]
    + ((value - view[axis][0]) / (view[axis][1] - view[axis][0])) * (whole[axis][1] - whole[axis][0]);
  const isWhole = () => ["x", "y"].every((axis) =>
    view[axis][0] === whole[axis][2] && view[axis][1] === whole[axis][3]);

  function draw() {
    const here = isWhole();
    svg.classList.toggle("zoomed", !here);
    axes.forEach((tick) => { tick.style.display = here ? "" : "none"; });
    own.replaceChildren();
    lines.forEach((line, i) => line.setAttribute("d", here ? originals[i] : moved(originals[i])));
    marks.forEach(([mark, x, y]) => {
      mark.setAttribute("x", here ? x : toView("x", along("x", x)));
      mark.setAttribute("y", here ? y : toView("y", along("y", y)));
    });
    if (here) return;
    ticks(view.x, plot.log_x).forEach((value) => label(toView("x", value), plot.bottom + 14, "middle",
      shown(plot.log_x ? 10 ** value : value, false)));
    ticks(view.y, plot.log_y).forEach((value) => {
      const y = toView("y", value);
      const line = own.appendChild(document.createElementNS(SVG, "line"));
      for (const [key, at] of [["x1", plot.left], ["x2", plot.right], ["y1", y], ["y2", y]]) {
        line.setAttribute(key, at);
      }
      label(plot.left - 4, y + 4, "end", shown(plot.log_y ? 10 ** value : value, plot.percent));
    });
  }

  function moved(path) {
    let axis = "y";
    return path.replace(/-?\d+(\.\d+)?(e-?\d+)?/g, (text) => {
      axis = axis === "x" ? "y" : "x";
      return toView(axis, along(axis, Number(text))).toFixed(2);
    });
  }

  function label(x, y, anchor, text) {
    const element = own.appendChild(document.createElementNS(SVG, "text"));
    element.setAttribute("x", x);
    element.setAttribute("y", y);
    element.setAttribute("text-anchor", anchor);
    element.textContent = text;
  }

  function zoom(x, y) {
    for (const [axis, wanted] of [["x", x], ["y", y]]) {
      const [low, high] = [whole[axis][2], whole[axis][3]];
      const span = Math.min(Math.max(wanted[1] - wanted[0], (high - low) / 1e4), high - low);
      const from = Math.min(Math.max(wanted[0], low), high - span);
      view[axis] = span === high - low ? [low, high] : [from, from + span];
    }
    draw();
  }

  function at(event) {
    const box = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / box.width;
    const clamp = (value, a, b) => Math.min(Math.max(value, Math.min(a, b)), Math.max(a, b));
    return [clamp((event.clientX - box.left) * scale, plot.left, plot.right),
      clamp((event.clientY - box.top) * scale, plot.top, plot.bottom)];
  }

  let from = null;
  svg.addEventListener("pointerdown", (event) => {
    from = at(event);
    svg.setPointerCapture(event.pointerId);
    event.preventDefault();
    svg.focus();
  });
  svg.addEventListener("pointermove", (event) => {
    if (from === null) return;
    const to = at(event);
    frame.setAttribute("x", Math.min(from[0], to[0]));
    frame.setAttribute("y", Math.min(from[1], to[1]));
    frame.setAttribute("width", Math.abs(from[0] - to[0]));
    frame.setAttribute("height", Math.abs(from[1] - to[1]));
  });
  const ended = (event) => {
    if (from === null) return;
    const [a, b] = [from, at(event)];
    from = null;
    frame.setAttribute("width", 0);
    if (event.type === "pointercancel" || Math.abs(a[0] - b[0]) < 6 || Math.abs(a[1] - b[1]) < 6) return;
    const inView = (axis, place) => view[axis][0] + ((place - whole[axis][0])
      / (whole[axis][1] - whole[axis][0])) * (view[axis][1] - view[axis][0]);
    const ordered = (axis, p, q) => [inView(axis, p), inView(axis, q)].sort((u, v) => u - v);
    zoom(ordered("x", a[0], b[0]), ordered("y", a[1], b[1]));
  };
  svg.addEventListener("pointerup", ended);
  svg.addEventListener("pointercancel", ended);
  svg.addEventListener("dblclick", () => zoom(whole.x.slice(2), whole.y.slice(2)));
  svg.addEventListener("keydown", (event) => {
    const shifts = { ArrowLeft: ["x", -1], ArrowRight: ["x", 1], ArrowDown: ["y", -1], ArrowUp: ["y", 1] };
    const factor = { "+": 0.5, "=": 0.5, "-": 2 }[event.key];
    const next = { x: [...view.x], y: [...view.y] };
    if (event.key === "0" || event.key === "Escape") {
      next.x = whole.x.slice(2);
      next.y = whole.y.slice(2);
    } else if (factor) {
      for (const axis of ["x", "y"]) {
        const middle = (view[axis][0] + view[axis][1]) / 2;
        const half = ((view[axis][1] - view[axis][0]) / 2) * factor;
        next[axis] = [middle - half, middle + half];
      }
    } else if (shifts[event.key] && !isWhole()) {
      const [axis, sign] = shifts[event.key];
      const step = (sign * (view[axis][1] - view[axis][0])) / 4;
      next[axis] = view[axis].map((value) => value + step);
    } else {
      return;
    }
    event.preventDefault();
    zoom(next.x, next.y);
  });
  svg.tabIndex = 0;
  svg.classList.add("zoomable");
  const charts = svg.closest(".charts");
  if (charts.nextElementSibling?.classList.contains("hint")) return;
  const hint = document.createElement("p");
  hint.className = "muted small hint";
  hint.textContent = "Drag in a chart to zoom, double-click for the whole; or, with the keyboard, "
    + "+ − 0 and the arrows.";
  charts.after(hint);
}

// Round values within a span: at most six of them; of a logarithmic axis whole powers where it has two.
function ticks([low, high], logarithmic) {
  if (logarithmic && high - low >= 2) {
    const step = Math.ceil((high - low) / 6);
    return Array.from({ length: 7 }, (_, i) => Math.ceil(low) + i * step).filter((v) => v <= high);
  }
  const [from, to] = logarithmic ? [10 ** low, 10 ** high] : [low, high];
  const rough = (to - from) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough);
  const found = [];
  for (let i = Math.ceil(from / step); i * step <= to; i += 1) found.push(i * step);
  return logarithmic ? found.map(Math.log10) : found;
}

function shown(value, percent) {
  const number = Number((percent ? 100 * value : value).toPrecision(4));
  const large = Math.abs(number) >= 1e6 || (number !== 0 && Math.abs(number) < 1e-3);
  const text = large ? number.toExponential() : number.toLocaleString("en");
  return percent ? `${text} %` : text;
}

// A picture is a grid of square images, each row one of them and what was made of it. Its last column
// and its first over each other, image by image, and a slider that says how much of each is seen.
function slider(figure) {
  const picture = figure.querySelector("img");
  const cut = figure.querySelector("input");
  const gallery = figure.querySelector(".gallery");
  const [columns, gap] = [Number(figure.dataset.columns), Number(figure.dataset.gap)];
  const size = (picture.naturalWidth - (columns - 1) * gap) / columns;
  const rows = Math.round((picture.naturalHeight + gap) / (size + gap));
  // Of a background, in %: an offset of its own size against the frame's.
  const place = (at, length) => (length === size ? 0 : (100 * at * (size + gap)) / (length - size));
  for (let row = 0; row < rows; row += 1) {
    const image = gallery.appendChild(document.createElement("div"));
    for (const column of [columns - 1, 0]) {
      const layer = image.appendChild(document.createElement("div"));
      layer.className = picture.className;
      layer.style.backgroundImage = `url("${picture.src}")`;
      layer.style.backgroundSize = `${(100 * picture.naturalWidth) / size}% auto`;
      layer.style.backgroundPosition = `${place(column, picture.naturalWidth)}% ${place(row, picture.naturalHeight)}%`;
    }
  }
  const slide = () => gallery.style.setProperty("--cut", `${cut.value}%`);
  cut.addEventListener("input", slide);
  slide();
  figure.querySelector(".slider").hidden = false;
}

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("input[data-filters]").forEach(filtered);
document.querySelectorAll("svg[data-plot]").forEach(zoomable);
document.querySelectorAll("figure[data-columns]").forEach((figure) => {
  figure.querySelector("img").decode().then(() => slider(figure));
});
