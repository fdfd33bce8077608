// Draws two charts over time with uPlot, and says in words what they show.

import { h, render, table } from "./dom.js";
import * as format from "./format.js";

const HEIGHT = 190;
const ROWS = 24;

const dark = matchMedia("(prefers-color-scheme: dark)");

/** Return a chart: an object with `element`, `show(series)` and `close()`. */
export function chart(title, { axes, lines, bands, scale, summary, columns }) {
  const canvas = h("div", { class: "canvas", role: "img", "aria-label": title, "data-keep": true });
  const words = h("p", { class: "summary" });
  const list = h("div");
  const details = h("details", {}, h("summary", {}, `${title} as a table`), list);
  const element = h("figure", {}, h("figcaption", {}, title), words, canvas, details);
  let plot = null;
  let shown = null;

  function options() {
    const style = getComputedStyle(element);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = {
      stroke: colour("--muted"),
      grid: { stroke: colour("--line"), width: 1 },
      ticks: { show: false },
      font: "12px system-ui",
    };
    const range = shown.until - shown.since;
    return {
      width: Math.max(200, canvas.clientWidth),
      height: HEIGHT,
      cursor: { drag: { x: false, y: false }, points: { size: 7 } },
      legend: { show: true, live: true },
      scales: { x: { time: true, range: () => [shown.since, shown.until] }, y: scale },
      axes: [
        {
          ...axis,
          size: 30,
          space: 60,
          values: (_, ticks) => ticks.map((tick) => format.tick(tick, range)),
        },
        { ...axis, size: 72, space: 36, values: (_, ticks) => ticks.map(axes) },
      ],
      series: [
        { label: "Time", value: (_, time) => (time == null ? "–" : format.moment(time)) },
        ...lines.map(({ label, colour: name, dash, fill }) => ({
          label,
          dash,
          stroke: colour(name),
          fill: fill && colour(fill),
          width: 1.75,
          value: (_, value) => (value == null ? "–" : axes(value)),
        })),
      ],
      bands: bands?.map(({ series, fill }) => ({ series, fill: colour(fill) })),
    };
  }

  function draw() {
    plot?.destroy();
    plot = shown && new window.uPlot(options(), drawn(shown, lines), canvas);
  }

  const resized = new ResizeObserver(() =>
    plot?.setSize({ width: Math.max(200, canvas.clientWidth), height: HEIGHT }),
  );
  resized.observe(canvas);
  dark.addEventListener("change", draw);

  return {
    element,
    show(series) {
      const isSameRange = shown && shown.step === series.step && plot;
      shown = series;
      words.textContent = summary(series);
      canvas.setAttribute("aria-label", `${title}. ${words.textContent}`);
      render(list, table(title, columns, grouped(series), { empty: "Nothing yet." }));
      if (isSameRange) plot.setData(drawn(series, lines));
      else draw();
    },
    close() {
      resized.disconnect();
      dark.removeEventListener("change", draw);
      plot?.destroy();
    },
  };
}

/**
 * Return what uPlot draws: times, and the values of each line. It breaks a line at null, which is
 * where the cache did not run, and draws it on over undefined, where there is nothing to say.
 */
function drawn({ points, step }, lines) {
  const columns = [[], ...lines.map(() => [])];
  let last = null;
  for (const point of points) {
    if (last !== null && point.time - last > 1.5 * step) {
      columns.forEach((column, number) => column.push(number ? null : last + step));
    }
    last = point.time;
    columns[0].push(last);
    lines.forEach(({ value }, number) => columns[number + 1].push(value(point, step)));
  }
  return columns;
}

/** Return the sum of what was counted at these points. */
export function total(points) {
  const sum = { requests: 0, hits: 0, errors: 0, client_bytes: 0, upstream_bytes: 0 };
  for (const point of points) {
    for (const name of Object.keys(sum)) sum[name] += point[name] ?? 0;
  }
  return sum;
}

/** Return the points in groups, each with its first time: as many as fit a table. */
function grouped({ points }) {
  const size = Math.max(1, Math.ceil(points.length / ROWS));
  const groups = [];
  for (let start = 0; start < points.length; start += size) {
    const some = points.slice(start, start + size);
    groups.push({ time: some[0].time, ...total(some) });
  }
  return groups.reverse();
}

const time = { title: "From", cell: (row) => format.moment(row.time) };

/** Return the chart of the hit ratio. */
export function hitRatio() {
  return chart("Hit ratio", {
    axes: (value) => `${Math.round(value)} %`,
    scale: { range: [0, 100] },
    lines: [
      {
        label: "Hits",
        colour: "--accent",
        fill: "--accent-wash",
        value: ({ hits, requests }) => (requests ? (100 * hits) / requests : undefined),
      },
    ],
    summary({ points }) {
      const sum = total(points);
      if (!sum.requests) return "No requests in this time.";
      return `${format.percent(sum.hits, sum.requests)} of ${format.count(sum.requests, "request")}, ${format.count(sum.errors, "error")}.`;
    },
    columns: [
      time,
      { title: "Hit ratio", kind: "number", cell: (row) => format.percent(row.hits, row.requests) },
      { title: "Requests", kind: "number", cell: (row) => format.number(row.requests) },
    ],
  });
}

/** Return the chart of bytes to clients and from registries; the difference is what was saved. */
export function traffic() {
  return chart("Bytes saved", {
    axes: (value) => `${format.bytes(value)}/s`,
    scale: { range: (_, __, most) => [0, Math.max((most ?? 0) * 1.05, 1024)] },
    lines: [
      {
        label: "To clients",
        colour: "--accent",
        value: (point, step) => point.client_bytes / step,
      },
      {
        label: "From registries",
        colour: "--second",
        dash: [5, 4],
        value: (point, step) => point.upstream_bytes / step,
      },
    ],
    bands: [{ series: [1, 2], fill: "--accent-wash" }],
    summary({ points }) {
      const sum = total(points);
      const saved = sum.client_bytes - sum.upstream_bytes;
      return `${format.bytes(saved)} saved: ${format.bytes(sum.client_bytes)} to clients, ${format.bytes(sum.upstream_bytes)} from registries.`;
    },
    columns: [
      time,
      {
        title: "Saved",
        kind: "number",
        cell: (row) => format.bytes(row.client_bytes - row.upstream_bytes),
      },
      { title: "To clients", kind: "number", cell: (row) => format.bytes(row.client_bytes) },
      { title: "From registries", kind: "number", cell: (row) => format.bytes(row.upstream_bytes) },
    ],
  });
}
