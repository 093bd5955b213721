// Draws the charts of a page: specification and rows are beside each as JSON, colours are those of
// the style sheet, and a table has the same numbers for those who see no chart.
"use strict";

function look() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue("--" + name).trim();
  const [ink, faint, line, accent] = [of("ink"), of("faint"), of("line"), of("accent")];
  const text = { labelColor: faint, titleColor: faint, labelFontSize: 12, titleFontSize: 12 };
  return {
    background: "transparent",
    font: style.getPropertyValue("font-family"),
    view: { stroke: null },
    axis: { ...text, titleFontWeight: "normal", domainColor: line, tickColor: line, gridColor: line },
    axisY: { domain: false, ticks: false, labelPadding: 8 },
    legend: { ...text, symbolType: "circle" },
    range: {
      category: [1, 2, 3, 4, 5, 6].map((n) => of("series-" + n)),
      heatmap: [of("heat-0"), of("heat-1"), of("heat-2")],
      ramp: [of("heat-0"), of("heat-1"), of("heat-2")],
    },
    style: {
      band: { color: accent, opacity: 0.16 },
      past: { color: accent, strokeWidth: 2 },
      expected: { color: accent, strokeWidth: 2, strokeDash: [5, 4] },
      near: { color: accent, filled: true, size: 60 },
      series: { strokeWidth: 2 },
      dot: { filled: true, size: 24 },
      part: { opacity: 0.85, line: false },
      cell: { stroke: of("surface"), strokeWidth: 2, cornerRadius: 3 },
      "guide-label": { fill: faint },
      "guide-title": { fill: faint },
      text: { fill: ink },
    },
  };
}

function draw() {
  const config = look();
  for (const plot of document.querySelectorAll("[data-chart]")) {
    const { spec, rows } = JSON.parse(document.getElementById(plot.dataset.chart).textContent);
    vegaEmbed(plot, { ...spec, datasets: { rows } }, {
      ast: true, // the policy of the page allows no code from text
      actions: false,
      config,
      defaultStyle: false,
      renderer: "svg",
      tooltip: { disableDefaultStyle: true },
    }).then((drawn) => {
      const graphic = drawn.view.container().querySelector("svg");
      graphic.setAttribute("aria-hidden", "true"); // the box round it says what it is
      plot.dataset.drawn = "true";
    });
  }
}

draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
