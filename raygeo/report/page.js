// Folded parts open where a link leads into them, and on paper.
const folds = [...document.querySelectorAll("main details")];
const reveal = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
  target.scrollIntoView();
};
addEventListener("hashchange", reveal);
let closed = [];
addEventListener("beforeprint", () => { closed = folds.filter(fold => !fold.open); for (const fold of closed) fold.open = true; });
addEventListener("afterprint", () => { for (const fold of closed) fold.open = false; closed = []; });

// The contents are a menu where the window is narrow, and say which part is being read.
const menu = document.querySelector("nav details"), wide = matchMedia("(min-width: 1000px)");
const unfold = () => { menu.open = wide.matches; };
wide.addEventListener("change", unfold);
unfold();
const links = new Map([...menu.querySelectorAll("a")].map(link => [link.hash.slice(1), link]));
const spy = new IntersectionObserver(seen => {
  for (const { target, isIntersecting } of seen) {
    if (isIntersecting) links.get(target.id).setAttribute("aria-current", "true");
    else links.get(target.id).removeAttribute("aria-current");
  }
}, { rootMargin: "-15% 0px -80% 0px" });
for (const id of links.keys()) spy.observe(document.getElementById(id));

// Tables sort, filter and are saved as CSV once they are seen.
const make = (name, className, text) => Object.assign(document.createElement(name), { className, textContent: text });
const save = (parts, type, name) => {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(new Blob(parts, { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href));
};
const fileName = text => text.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "");
const equip = part => {
  const table = part.querySelector("table"), label = part.getAttribute("aria-label");
  if (part.dataset.equipped || typeof jQuery === "undefined" || table.tBodies[0].rows.length < 2) return;
  part.dataset.equipped = "true";
  const words = cell => [cell.querySelector("small")].reduce(
    (text, small) => small ? `${text.slice(0, -small.textContent.length)} ${small.textContent}` : text, cell.textContent
  ).replaceAll("\u2212", "-").trim();
  const rows = table.tBodies[0].rows.length;
  for (const column of table.dataset.numbers.split("|").filter(Boolean)) {
    const [place, numbers] = column.split(":");
    numbers.split(",").forEach((number, row) => { table.tBodies[0].rows[row].cells[place].dataset.order = number; });
  }
  const api = jQuery(table).DataTable({
    paging: false, info: false, autoWidth: false, order: [],
    layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null },
  });
  const csv = new jQuery.fn.dataTable.Buttons(api, { buttons: [{
    extend: "csvHtml5", text: "CSV", titleAttr: `Save as CSV: ${label}`, filename: fileName(label), title: null, footer: false, bom: true,
    exportOptions: { format: { body: (data, row, column, cell) => words(cell), header: (data, column, cell) => words(cell) } },
  }] }).container()[0];
  const tools = make("div", "tools", ""), box = make("input", "filter", ""), count = make("span", "", "");
  Object.assign(box, { type: "search", placeholder: "filter rows: words that all occur" });
  box.setAttribute("aria-label", `Filter: ${label}`);
  count.setAttribute("role", "status");
  box.addEventListener("input", () => {
    api.search(box.value).draw();
    count.textContent = box.value.trim() ? `${api.rows({ search: "applied" }).count()} of ${rows} rows` : "";
  });
  tools.append(...(rows > 5 ? [box] : []), csv, count);
  part.before(tools);
};
const shown = part => part.getClientRects().length > 0;
for (const part of document.querySelectorAll(".scroll")) if (shown(part)) equip(part);
for (const fold of folds) fold.addEventListener("toggle", () => { if (!closed.length) for (const part of fold.querySelectorAll(".scroll")) if (shown(part)) equip(part); });

// Figures tell the point nearest to the pointer, and its run stands out, or the cell below it; each is saved as it stands.
const tip = make("div", "tip", "");
tip.hidden = true;
tip.setAttribute("role", "status");
document.body.append(tip);
const light = { "--ink": "#1b1f24", "--muted": "#5b6470", "--grid": "#d9dee4", "--paper": "#ffffff" };
const number = value => String(value).replace("-", "\u2212");
for (const plot of document.querySelectorAll(".plot")) {
  const { size, axes, lines, cells } = JSON.parse(plot.querySelector("script").textContent);
  const picture = plot.querySelector("svg, img"), marks = [...plot.querySelectorAll("[data-run]")];
  const stress = run => {
    const known = marks.some(mark => mark.dataset.run === run);
    for (const mark of marks) mark.classList.toggle("dim", known && mark.dataset.run !== run);
  };
  const nearest = (x, y) => {
    let best = null, least = 14;
    for (const [run, place, points] of lines) for (const point of points) {
      const distance = Math.hypot(point[0] - x, point[1] - y);
      if (distance < least) { least = distance; best = { run, point, names: axes[place] }; }
    }
    return best;
  };
  const cell = (x, y) => {
    for (const [title, down, across, [left, top], [right, bottom], rows, columns, values] of cells) {
      const column = Math.floor((x - left) / (right - left) * columns.length), row = Math.floor((y - top) / (bottom - top) * rows.length);
      if (!(row in rows && column in columns)) continue;
      const value = values[row * columns.length + column];
      return [`${title} ${value === null ? "\u2013" : number(value)}`, `${down} ${rows[row]}`, `${across} ${columns[column]}`];
    }
    return null;
  };
  const leave = () => { tip.hidden = true; stress(null); };
  const tell = event => {
    const box = picture.getBoundingClientRect();
    const at = [(event.clientX - box.left) / box.width * size[0], (event.clientY - box.top) / box.height * size[1]];
    const found = nearest(...at), run = found ? found.run : event.target.closest("[data-run]")?.dataset.run;
    const told = found ? found.names.map((name, i) => `${name} ${number(found.point[2 + i])}`) : [];
    const [head, ...rest] = run ? [run, ...told] : cell(...at) ?? [];
    if (!head) return leave();
    stress(run);
    tip.replaceChildren(make("strong", "", head), ...rest.map(text => make("div", "", text)));
    tip.hidden = false;
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 4))}px`;
    tip.style.top = `${event.clientY + 18 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : event.clientY + 18}px`;
  };
  for (const kind of ["pointermove", "pointerdown"]) plot.addEventListener(kind, tell);
  plot.addEventListener("pointerleave", leave);
  const button = make("button", "save", picture.tagName === "IMG" ? "PNG" : "SVG");
  const name = plot.closest("figure").id;
  button.title = `Save this figure as ${button.textContent}`;
  button.addEventListener("click", () => {
    if (picture.tagName === "IMG") {
      const canvas = Object.assign(make("canvas", "", ""), { width: picture.naturalWidth, height: picture.naturalHeight });
      canvas.getContext("2d").drawImage(picture, 0, 0);
      return canvas.toBlob(blob => save([blob], "image/png", `${name}.png`));
    }
    const text = new XMLSerializer().serializeToString(picture).replace(/var\((--\w+)\)/g, (all, colour) => light[colour]);
    save([text], "image/svg+xml", `${name}.svg`);
  });
  plot.before(button);
}
reveal();
