// What a column of a plot says, over the plot: by pointer, or with the arrow keys. A click, or Enter, opens
// the requests that the column counts.
"use strict";

(() => {
  function show(svg, column) {
    svg.querySelector(".hit.at")?.classList.remove("at");
    const readout = svg.closest("figure").querySelector(".readout");
    if (!column) return;
    column.querySelector(".hit").classList.add("at");
    readout.textContent = column.querySelector("title").textContent;
  }

  function open(column) {
    if (column?.dataset.url) location.assign(column.dataset.url);
  }

  document.addEventListener("pointerover", (event) => {
    const column = event.target.closest?.(".plot g");
    if (column) show(column.closest("svg"), column);
  });

  document.addEventListener("click", (event) => open(event.target.closest?.(".plot g")));

  document.addEventListener("keydown", (event) => {
    const svg = event.target.closest?.(".plot svg");
    if (!svg) return;
    const columns = [...svg.querySelectorAll("g")];
    const at = columns.findIndex((column) => column.querySelector(".hit.at"));
    if (event.key === "Enter") return open(columns[at]);
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = at < 0 ? columns.length - 1 : Math.min(columns.length - 1, Math.max(0, at + step));
    show(svg, columns[next]);
  });
})();
