"use strict";
(() => {
  const { $, $$, make, data } = realad;
  if (!data || !$("#filters")) return;
  const thumbs = $("#thumbs").textContent.split("\n");
  const several = data.views.length > 1;
  const form = $("#filters"), cards = $("#cards");
  cards.classList.toggle("several", several);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const colours = bytes(data.colours);
  data.items.forEach((item, index) => {
    item.index = index;
    item.present = item.cells.filter(Boolean);
    item.bad = Math.max(...item.present.map((c) => c.bad));
    item.text = [item.id, ...item.present.map((c) => c.response)].join(" ").toLowerCase();
  });
  const peak = Math.max(...data.items.flatMap((i) => i.present.map((c) => (c.map ? c.map.high : 0))));

  const fill = (name, values) => values.forEach((value) => form.elements[name].append(new Option(value, value)));
  const distinct = (key) => [...new Set(data.items.map((i) => i[key]).filter(Boolean))].sort();
  fill("category", distinct("category"));
  fill("defect", distinct("defect"));

  // Pictures.
  const paint = (canvas, map, shared) => {
    const levels = bytes(map.data), context = canvas.getContext("2d");
    const pixels = context.createImageData(map.cols, map.rows);
    levels.forEach((level, i) => {
      const value = shared ? ((map.low + (level / 255) * (map.high - map.low)) / (peak || 1)) * 255 : level;
      pixels.data.set(colours.subarray(4 * Math.round(value), 4 * Math.round(value) + 4), 4 * i);
    });
    context.putImageData(pixels, 0, 0);
  };
  const outlineOf = (item) => {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 1 1");
    svg.setAttribute("preserveAspectRatio", "none");
    const path = item.outline.map((shape) => {
      let d = "";
      for (let i = 0; i < shape.length; i += 2) d += `${i ? "L" : "M"}${shape[i]} ${shape[i + 1]}`;
      return d + "Z";
    }).join("");
    for (const name of ["casing", "edge"]) {
      const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
      line.setAttribute("d", path);
      line.setAttribute("class", name);
      svg.append(line);
    }
    return svg;
  };
  const picture = (item, cell, tag) => {
    const box = make("span", "pic");
    if (item.size) box.style.setProperty("--aspect", item.size[1] / item.size[0]);
    if (thumbs[item.index]) {
      const image = make("img");
      image.alt = tag ? "" : `${item.id}`;
      image.decoding = "async";
      image.src = `data:image/webp;base64,${thumbs[item.index]}`;
      box.append(image);
    }
    if (cell && cell.map) {
      const called = cell.pred_label === 1 ? "" : " called-normal";
      const canvas = make("canvas", `heat${called}`);
      canvas.width = cell.map.cols;
      canvas.height = cell.map.rows;
      canvas.map = cell.map;
      paint(canvas, cell.map, form.elements.shared.checked);
      const region = make("canvas", `region${called}`);
      region.of = { item, cell };
      box.append(canvas, region);
    }
    if (item.outline.length) box.append(outlineOf(item));
    if (tag) box.append(make("span", "tag", tag));
    if (cell && !cell.map) box.append(make("span", "empty", `no map${cell.problem ? `: ${cell.problem.replaceAll("_", " ")}` : ""}`));
    return box;
  };

  // The region above a threshold of the map, and how much of it and the mask overlap (intersection over union).
  const LONGEST = 96;  // pixels in which regions are counted and drawn
  const level = () => (form.elements.level.value / 1000) * peak;
  const raster = (item, draw) => {
    const [height, width] = item.size || [1, 1], scale = LONGEST / Math.max(height, width);
    const canvas = make("canvas");
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
    const context = canvas.getContext("2d", { willReadFrequently: true });
    draw(context, canvas.width, canvas.height);
    return context.getImageData(0, 0, canvas.width, canvas.height);
  };
  const spread = (item, map) => {
    const small = make("canvas"), levels = bytes(map.data);
    small.width = map.cols;
    small.height = map.rows;
    const pixels = small.getContext("2d").createImageData(map.cols, map.rows);
    levels.forEach((value, i) => pixels.data.set([value, value, value, 255], 4 * i));
    small.getContext("2d").putImageData(pixels, 0, 0);
    return raster(item, (context, w, h) => { context.imageSmoothingQuality = "high"; context.drawImage(small, 0, 0, w, h); });
  };
  const filled = (item) => raster(item, (context, w, h) => {
    const path = new Path2D();
    for (const shape of item.outline) {
      for (let i = 0; i < shape.length; i += 2) path[i ? "lineTo" : "moveTo"](shape[i] * w, shape[i + 1] * h);
      path.closePath();
    }
    context.fill(path, "evenodd");
  });
  const cut = (region) => {
    const { item, cell } = region.of, map = cell.map;
    const values = spread(item, map), mask = item.outline.length ? filled(item) : null;
    const { width, height } = values, empty = cell.pred_label !== 1 && document.body.dataset.maps === "zeroed";
    const inside = new Uint8Array(width * height);
    let both = 0, either = 0;
    for (let i = 0; i < inside.length; i += 1) {
      inside[i] = !empty && map.low + (values.data[4 * i] / 255) * (map.high - map.low) >= level() ? 1 : 0;
      const hit = mask && mask.data[4 * i + 3] > 127 ? 1 : 0;
      both += inside[i] & hit;
      either += inside[i] | hit;
    }
    region.width = width;
    region.height = height;
    const pixels = new ImageData(width, height);
    for (let y = 0; y < height; y += 1) for (let x = 0; x < width; x += 1) {
      const i = y * width + x;
      if (!inside[i]) continue;
      const edge = x === 0 || y === 0 || x === width - 1 || y === height - 1 || !inside[i - 1] || !inside[i + 1] || !inside[i - width] || !inside[i + width];
      pixels.data.set([255, 255, 255, edge ? 255 : 60], 4 * i);
    }
    region.getContext("2d").putImageData(pixels, 0, 0);
    cell.overlap = mask ? both / either : null;
    $$(`[data-overlap="${item.index}-${item.cells.indexOf(cell)}"]`).forEach((chip) => {
      chip.hidden = cell.overlap === null;
      chip.textContent = `overlap ${(100 * (cell.overlap || 0)).toFixed(0)}`;
    });
  };
  const cutAll = (root = document) => {
    const on = form.elements.cut.checked;
    document.body.classList.toggle("cutting", on);
    $("#cut-value").textContent = on ? level().toPrecision(3) : "";
    if (on) $$("canvas.region", root).forEach(cut);
  };
  const markCut = () => {
    const run = data.runs[0], at = run ? run.map[document.body.dataset.maps] : null, mark = $("#cut-mark");
    mark.hidden = at === null || at === undefined;
    if (mark.hidden) return;
    mark.textContent = `${at.toPrecision(3)}: ${run.source}`;
    mark.onclick = () => {
      form.elements.level.value = Math.min(1000, (1000 * at) / (peak || 1));
      form.elements.cut.checked = true;
      cutAll();
    };
  };
  document.addEventListener("maps", () => { markCut(); cutAll(); });

  // Words.
  const number = (value, digits = 3) => (value === null || value === undefined ? "–" : Number(value).toPrecision(digits));
  const words = (cell) => {
    const box = make("p", "words");
    if (!cell.tokens.length) {
      box.classList.add("plain");
      box.textContent = cell.response || "(empty response)";
      return box;
    }
    const most = Math.max(...cell.tokens.map((t) => t[3])) || 1;
    for (const [text, st, si, weight, kept] of cell.tokens) {
      const space = text.match(/^\s*/)[0];  // left unshaded: it would hang over the end of a line
      const span = make("span", kept ? "kept" : "", text.slice(space.length));
      span.style.setProperty("--w", (0.75 * Math.max(0, weight) / most).toFixed(3));
      span.token = { text, st, si, weight, kept };
      if (box.hasChildNodes()) box.append(space);
      box.append(span);
    }
    return box;
  };
  const column = (item, cell, name) => {
    const box = make("div", "column");
    if (name) box.append(make("h4", "", name));
    const line = make("div", "verdict");
    const right = cell.pred_label === item.gt;
    line.append(make("strong", "", cell.answer === null ? "no answer" : cell.answer));
    line.append(make("span", `chip ${right ? "right" : "wrong"}`, right ? "right" : cell.answer === null ? "counts as wrong" : item.gt ? "missed" : "false alarm"));
    if (cell.pred_score !== null) line.append(make("span", "chip", `score ${number(cell.pred_score, 2)}`));
    if (cell.jaccard !== null && cell.jaccard !== undefined) line.append(make("span", "chip", `J ${number(cell.jaccard, 2)}`));
    if (cell.pixel_auroc !== null && cell.pixel_auroc !== undefined) line.append(make("span", "chip", `pixel AUROC ${(100 * cell.pixel_auroc).toFixed(0)}`));
    const overlap = make("span", "chip overlap");
    overlap.dataset.overlap = `${item.index}-${item.cells.indexOf(cell)}`;
    overlap.hidden = true;
    line.append(overlap);
    if (!cell.well_formed) line.append(make("span", "chip warn", "not well-formed"));
    if (cell.contradiction) line.append(make("span", "chip warn", "contradicts its reasoning"));
    if (cell.fallback) line.append(make("span", "chip", "fallback tokens"));
    box.append(line, words(cell));
    return box;
  };
  const render = (item, full) => {
    const card = make("article", "card");
    const pics = make(full ? "div" : "button", "pics");
    if (!full) { pics.type = "button"; pics.setAttribute("aria-label", `show ${item.id} in full`); }
    pics.append(picture(item, null, several || full ? "image" : ""));
    item.cells.forEach((cell, k) => { if (cell) pics.append(picture(item, cell, several ? data.views[k] : full ? "anomaly map" : "")); });
    const body = make("div", "body"), name = make("div", "name");
    const id = make("span");
    id.append(make("bdi", "", item.id));
    id.title = item.id;
    name.append(id, make("span", `truth-${item.gt}`, item.gt === null ? "no label" : item.gt ? item.defect || "anomalous" : "normal"));
    const columns = make("div", "columns");
    item.cells.forEach((cell, k) => { if (cell) columns.append(column(item, cell, several ? data.views[k] : "")); });
    body.append(name, columns);
    if (full) item.present.forEach((cell) => body.append(make("pre", "raw", cell.response)));
    card.append(pics, body);
    if (!full) pics.addEventListener("click", () => open(item));
    return card;
  };

  // Filters and order.
  const verdicts = {
    wrong: (c, i) => c.pred_label !== i.gt, right: (c, i) => c.pred_label === i.gt,
    missed: (c, i) => i.gt === 1 && c.pred_label !== 1, alarm: (c, i) => i.gt === 0 && c.pred_label === 1,
    none: (c) => c.answer === null, form: (c) => !c.well_formed, contra: (c) => c.contradiction,
  };
  const low = (item, key, empty) => Math.min(...item.present.map((c) => c[key] ?? empty));
  const orders = {
    worst: (a, b) => b.bad - a.bad, best: (a, b) => a.bad - b.bad,
    score: (a, b) => -low(a, "pred_score", 0.5) + low(b, "pred_score", 0.5),
    local: (a, b) => low(a, "pixel_auroc", 2) - low(b, "pixel_auroc", 2),
    jaccard: (a, b) => low(b, "jaccard", -1) - low(a, "jaccard", -1), id: (a, b) => (a.id < b.id ? -1 : 1),
  };
  const PAGE = 24;
  let shown = [], drawn = 0;
  const draw = () => {
    const batch = document.createDocumentFragment();
    shown.slice(drawn, drawn + PAGE).forEach((item) => batch.append(render(item, false)));
    drawn = Math.min(drawn + PAGE, shown.length);
    const before = cards.children.length;
    cards.append(batch);
    if (form.elements.cut.checked) [...cards.children].slice(before).forEach((card) => cutAll(card));
  };
  const apply = () => {
    const f = Object.fromEntries(["category", "defect", "verdict", "order", "text"].map((k) => [k, form.elements[k].value]));
    const view = form.elements.view ? form.elements.view.value : "";
    const query = f.text.trim().toLowerCase();
    shown = data.items.filter((item) => {
      if (f.category && item.category !== f.category) return false;
      if (f.defect && item.defect !== f.defect) return false;
      if (query && !item.text.includes(query)) return false;
      if (f.verdict === "differ") return new Set(item.present.map((c) => c.answer)).size > 1;
      const of = view === "" ? item.present : [item.cells[view]].filter(Boolean);
      return !f.verdict || of.some((cell) => verdicts[f.verdict](cell, item));
    }).sort((a, b) => orders[f.order](a, b) || a.index - b.index);
    cards.replaceChildren();
    drawn = 0;
    draw();
    if (!shown.length) cards.append(make("p", "none", "No image fits these filters."));
    $("#count").textContent = shown.length === data.items.length ? `${shown.length} images` : `${shown.length} of ${data.items.length} images`;
  };
  const overlay = () => {
    document.body.style.setProperty("--opacity", form.elements.opacity.value / 100);
    document.body.classList.toggle("no-outline", !form.elements.outline.checked);
  };
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => {
    const name = event.target.name;
    if (name === "opacity" || name === "outline") overlay();
    else if (name === "cut" || name === "level") { if (name === "level") form.elements.cut.checked = true; cutAll(); }
    else if (name === "shared") $$("canvas.heat").forEach((canvas) => paint(canvas, canvas.map, event.target.checked));
    else apply();
  });
  new IntersectionObserver((entries) => {
    if (entries.some((e) => e.isIntersecting) && drawn < shown.length) draw();
  }, { rootMargin: "1200px" }).observe($("#more"));

  // One image in full.
  const dialog = $("#zoom");
  let current = null;
  const open = (item) => {
    current = item;
    $("#zoom-body").replaceChildren(render(item, true));
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    if (form.elements.cut.checked) cutAll(dialog);
  };
  const step = (by) => { const next = shown[shown.indexOf(current) + by]; if (next) open(next); };
  dialog.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (event.target === dialog || (button && "close" in button.dataset)) dialog.close();
    else if (button && button.dataset.step) step(Number(button.dataset.step));
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") step(event.key === "ArrowLeft" ? -1 : 1);
  });

  // The figures behind a token: on hover, or on a tap.
  const tip = $("#tip");
  let marked = null;
  const hide = () => { tip.hidden = true; if (marked) marked.classList.remove("on"); marked = null; };
  const point = (event) => {
    const token = event.target.token;
    if (!token) { hide(); return; }
    hide();
    marked = event.target;
    marked.classList.add("on");
    tip.replaceChildren(make("b", "", JSON.stringify(token.text)));
    tip.append(document.createElement("br"), `w ${number(token.weight)} · S_T ${number(token.st)} · S_I ${number(token.si)}`);
    tip.append(document.createElement("br"), token.kept ? "kept for the map" : "not kept");
    (dialog.open ? dialog : document.body).append(tip);
    tip.style.left = "0px";  // measured where nothing squeezes it
    tip.hidden = false;
    const at = marked.getBoundingClientRect(), size = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(6, Math.min(at.left, innerWidth - size.width - 6))}px`;
    tip.style.top = `${at.top > size.height + 10 ? at.top - size.height - 6 : at.bottom + 6}px`;
  };
  document.addEventListener("pointerover", point);
  document.addEventListener("pointerdown", point);
  addEventListener("scroll", hide, { passive: true, capture: true });

  markCut();
  overlay();
  apply();
})();
