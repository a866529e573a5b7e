// Moves the threshold over the counts of the page, and says what it would flag.
"use strict";

(() => {
  const slider = document.getElementById("threshold");
  const counts = JSON.parse(document.getElementById("counts").textContent);
  const from = (bins, at) => bins.slice(Math.round(at * 100)).reduce((sum, n) => sum + n, 0);
  const number = (n) => n.toLocaleString("en-US");

  function summary(at) {
    const lines = [`${number(from(counts.scores, at))} of ${number(from(counts.scores, 0))} flagged in 30 days, ${number(from(counts.false_alarms, at))} of them reported as false alarms.`];
    const missed = from(counts.missed, 0);
    if (missed) lines.push(`${number(from(counts.missed, at))} of ${number(missed)} missed attacks would be flagged.`);
    if (counts.attacks) {
      lines.push(`Of the uploaded texts: ${number(from(counts.attacks, at))} of ${number(from(counts.attacks, 0))} attacks flagged, ${number(from(counts.harmless, at))} of ${number(from(counts.harmless, 0))} harmless ones.`);
    }
    return lines;
  }

  slider.addEventListener("input", () => {
    const at = Number(slider.value);
    document.getElementById("chosen").textContent = at.toFixed(2);
    const use = document.getElementById("use");
    if (use) use.value = at.toFixed(2);
    for (const bar of document.querySelectorAll(".histogram rect")) {
      bar.classList.toggle("over", Math.floor(Number(bar.getAttribute("x"))) >= Math.round(at * 100));
    }
    const line = document.getElementById("line");
    line.setAttribute("x1", at * 100);
    line.setAttribute("x2", at * 100);
    document.getElementById("summary").replaceChildren(...summary(at).map((text) => window.portal.element("p", text)));
  });
})();
