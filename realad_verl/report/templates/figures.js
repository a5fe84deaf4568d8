"use strict";
// Where to draw the line: counts, precision and recall at a threshold of pred_score.
(() => {
  const { $, data } = realad;
  const slider = $("#decide");
  if (!slider || !data) return;
  const choice = $("#decide-run"), mark = $("#decide-mark");
  let run, low, high;
  const threshold = () => low + (slider.value / 1000) * (high - low);
  const show = (value) => value.toPrecision(3);
  const share = (part, whole) => (whole ? `${(100 * part / whole).toFixed(1)}` : "–");
  const count = (at) => {
    const n = { tp: 0, fp: 0, fn: 0, tn: 0 };
    run.score.forEach((score, i) => { n[score >= at ? (run.gt[i] ? "tp" : "fp") : run.gt[i] ? "fn" : "tn"] += 1; });
    return n;
  };
  const write = (at) => {
    const n = count(at);
    for (const [key, value] of Object.entries(n)) $(`#n-${key}`).textContent = value;
    $("#n-precision").textContent = share(n.tp, n.tp + n.fp);
    $("#n-recall").textContent = share(n.tp, n.tp + n.fn);
    $("#n-f1").textContent = share(2 * n.tp, 2 * n.tp + n.fp + n.fn);
    $("#n-acc").textContent = share(n.tp + n.tn, run.score.length);
    $("#decide-value").textContent = show(at);
  };
  const place = (at) => { slider.value = high > low ? Math.round((1000 * (at - low)) / (high - low)) : 0; };
  const choose = () => {
    run = data.runs[choice ? choice.value : 0];
    low = run.score.reduce((a, b) => Math.min(a, b), Infinity);
    high = run.score.reduce((a, b) => Math.max(a, b), -Infinity);
    const marked = run.image !== null;
    mark.hidden = !marked;
    const at = marked ? run.image : (low + high) / 2;
    if (marked) mark.textContent = `${show(run.image)}: ${run.source}`;
    place(at);
    $("#decide-marks").replaceChildren(...(marked ? [new Option("", slider.value)] : []));
    if (run.score.length) write(at);
  };
  slider.addEventListener("input", () => write(threshold()));
  mark.addEventListener("click", () => { place(run.image); write(run.image); });
  if (choice) choice.addEventListener("change", choose);
  choose();
})();
