"use strict";
const realad = (() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;  // text, never markup: it may come from a model
    return element;
  };

  // Theme: system, light, dark. Storage can be refused, on file:// for instance; the choice then lasts as long as the page.
  const themes = ["system", "light", "dark"];
  const stored = () => { try { return localStorage.getItem("realad-theme"); } catch { return null; } };
  const setTheme = (theme) => {
    if (theme === "system") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = theme;
    $("#theme").textContent = `Theme: ${theme}`;
    try { localStorage.setItem("realad-theme", theme); } catch { /* see above */ }
  };
  setTheme(themes.includes(stored()) ? stored() : "system");
  $("#theme").addEventListener("click", () => {
    const now = document.documentElement.dataset.theme || "system";
    setTheme(themes[(themes.indexOf(now) + 1) % themes.length]);
  });

  // Everything that depends on whether the maps of images called normal are kept or zeroed.
  const showVariant = (variant) => {
    document.body.dataset.maps = variant;
    $$("[data-shows]").forEach((part) => { part.hidden = part.dataset.shows !== variant; });
    $$("[data-variant]").forEach((button) => button.setAttribute("aria-pressed", button.dataset.variant === variant));
    document.dispatchEvent(new CustomEvent("maps", { detail: variant }));
  };
  $$("[data-variant]").forEach((button) => button.addEventListener("click", () => showVariant(button.dataset.variant)));
  const first = $("[data-shows]:not([hidden])");
  if (first) showVariant(first.dataset.shows);

  // Tables are sorted by a click on the head of a column; rows of totals stay at the end.
  const worth = (cell) => {
    const text = cell.firstChild ? cell.firstChild.textContent.trim() : "";
    return text === "" || text === "–" ? null : Number.isNaN(Number(text)) ? text.toLowerCase() : Number(text);
  };
  const columnOf = (head) => {
    // Heads over two rows: those with rowspan come first, then the second row's in order.
    const rows = [...head.closest("thead").rows];
    const single = [...rows[0].cells].filter((cell) => cell.rowSpan === rows.length);
    return rows.length === 1 ? head.cellIndex : single.includes(head) ? single.indexOf(head) : single.length + head.cellIndex;
  };
  const sortBy = (table, head) => {
    const column = columnOf(head), body = table.tBodies[0];
    const down = head.getAttribute("aria-sort") !== "descending";
    $$("th[aria-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows], loose = rows.filter((row) => !row.classList.contains("total"));
    loose.sort((a, b) => {
      const x = worth(a.cells[column]), y = worth(b.cells[column]);
      if (x === null || y === null) return (x === null) - (y === null);  // what does not exist stays last
      return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
    });
    body.append(...loose, ...rows.filter((row) => row.classList.contains("total")));
  };
  $$("table.sortable thead th").forEach((head) => {
    if (head.scope === "colgroup") return;
    head.tabIndex = 0;
    const sort = () => sortBy(head.closest("table"), head);
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); } });
  });

  // Downloads: of what the page holds, nothing is fetched.
  const field = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const saved = { csv: "text/csv", json: "application/json" };
  $$("[data-download]").forEach((button) => button.addEventListener("click", () => {
    const kind = button.dataset.download, results = JSON.parse($("#results").textContent);
    const table = [results.images.columns, ...results.images.rows];
    const text = kind === "json" ? JSON.stringify(results, null, 1) : table.map((row) => row.map(field).join(",")).join("\r\n") + "\r\n";
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([text], { type: saved[kind] }));
    link.download = `realad-results.${kind}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }));

  return { $, $$, make, data: $("#data") ? JSON.parse($("#data").textContent) : null };
})();
