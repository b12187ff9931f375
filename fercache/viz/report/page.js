// The interactive parts of the page: figures in the theme's colors, the list of clips, one timeline at a time.
"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const LISTED = 300; // clips in the list at once; the filter reaches the others
  const CONFIG = { responsive: true, displaylogo: false, doubleClick: "reset", // these buttons only: some others go online
    modeBarButtons: [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]] };
  let current = null;

  // Names come from files and may contain markup: show them through textContent, or escaped in the plotting library.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const percent = (part, whole) => (whole ? (100 * part / whole).toFixed(1) + " %" : "–");
  const number = (value) => value.toLocaleString("en");
  const narrow = () => window.innerWidth < 600;

  function element(tag, text, className) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  // Black is the eighth color of the palette: on a dark page it becomes white.
  function color(place) {
    const found = data.colors[place];
    return dark.matches && found === "#000000" ? "#ffffff" : found;
  }

  function themed(layout) {
    const axis = (key) => Object.assign(layout[key], { gridcolor: css("--grid"), linecolor: css("--line"),
      tickcolor: css("--line"), zerolinecolor: css("--grid") });
    Object.keys(layout).filter((key) => /^[xy]axis/.test(key)).forEach(axis);
    return Object.assign(layout, { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: css("--ink"), size: narrow() ? 11 : 12, family: "system-ui, Segoe UI, Arial, sans-serif" },
      hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink") } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--link"), orientation: "v" } });
  }

  // Figures are drawn when they come near the window, so that the page opens quickly.
  function drawFigure(place) {
    const made = JSON.parse(JSON.stringify(data.figures[place.dataset.figure]));
    made.data.forEach((trace) => {
      if (trace.type === "bar") trace.outsidetextfont = { color: css("--ink") };
      if (trace.error_x) Object.assign(trace.error_x, { color: css("--soft"), thickness: 1.6 });
    });
    if (made.data[0].type === "heatmap") made.data[0].showscale = !narrow();
    Plotly.react(place, made.data, themed(made.layout), Object.assign({}, CONFIG, { displayModeBar: false }));
    place.dataset.drawn = "yes";
  }

  const watcher = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (!entry.isIntersecting) return;
    watcher.unobserve(entry.target);
    drawFigure(entry.target);
  }), { rootMargin: "600px" });
  document.querySelectorAll("[data-figure]").forEach((place) => watcher.observe(place));
  window.addEventListener("beforeprint", () => document.querySelectorAll("[data-figure]").forEach(drawFigure));

  // ---- the list ------------------------------------------------------------------------------------------------
  const split = (clip) => data.splits[clip.split] || clip.split;
  data.clips.forEach((clip, rank) => {
    clip.rank = rank;
    const mistake = clip.top_mistake ? data.classes[clip.top_mistake[0]] + " " + data.classes[clip.top_mistake[1]] : "";
    clip.words = (clip.name + " " + split(clip) + " " + mistake).toLowerCase();
  });
  const ORDERS = {
    share: (a, b) => a.rank - b.rank,
    wrong: (a, b) => b.wrong - a.wrong || a.rank - b.rank,
    gap: (a, b) => (b.frames - b.seen) - (a.frames - a.seen) || a.rank - b.rank,
    name: (a, b) => (a.name < b.name ? -1 : 1),
    length: (a, b) => b.frames - a.frames || a.rank - b.rank,
  };

  function listed() {
    const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    return data.clips.filter((clip) => words.every((word) => clip.words.includes(word)))
      .sort(ORDERS[byId("order").value]);
  }

  function item(clip) {
    const button = element("button");
    button.type = "button";
    button.dataset.rank = clip.rank;
    button.append(element("span", clip.name));
    const text = clip.labelled ? percent(clip.wrong, clip.labelled) + " of " + number(clip.labelled) + " wrong"
      : "no label";
    const mistake = clip.top_mistake ? ", mostly " + data.classes[clip.top_mistake[0]] + " predicted as " + data.classes[clip.top_mistake[1]]
      : "";
    button.append(element("small", text + mistake));
    const meter = element("span", undefined, "meter");
    const bar = element("i");
    bar.style.width = clip.labelled ? (100 * clip.wrong / clip.labelled) + "%" : "0";
    meter.append(bar);
    button.append(meter);
    button.addEventListener("click", () => choose(clip));
    const place = element("li");
    place.append(button);
    return place;
  }

  function list() {
    const found = listed();
    byId("list").replaceChildren(...found.slice(0, LISTED).map(item));
    const more = found.length > LISTED ? "; the first " + LISTED + " are listed, filter for the others" : "";
    byId("count").textContent = number(found.length) + " of " + number(data.clips.length) + " clips" + more;
    mark();
    return found;
  }

  function mark() {
    byId("list").querySelectorAll("button").forEach((button) =>
      button.setAttribute("aria-current", String(current !== null && Number(button.dataset.rank) === current.rank)));
  }

  // ---- one timeline --------------------------------------------------------------------------------------------
  function unpacked(clip) {
    if (clip.arrays) return clip.arrays;
    const bytes = Uint8Array.from(atob(clip.packed), (letter) => letter.charCodeAt(0));
    const n = clip.points, classes = data.classes.length;
    let at = 4 * (n + 1);
    const take = (length) => bytes.subarray(at, at += length);
    const time = Array.from(new Float32Array(bytes.buffer.slice(0, at)));
    const low = take(n * classes), high = clip.whole ? low : take(n * classes);
    const strips = clip.strips.map(() => take(n));
    clip.arrays = { time, low, high, strips, wrong: take(n), gap: take(n) };
    return clip.arrays;
  }

  // Each interval is drawn as its smallest and its largest value, so that no peak is lost.
  function lines(clip, arrays) {
    const n = clip.points, classes = data.classes.length, twice = clip.whole ? 1 : 2;
    const x = new Float32Array(n * twice);
    for (let i = 0; i < n; i++) for (let k = 0; k < twice; k++) x[i * twice + k] = arrays.time[i];
    return data.classes.map((name, c) => {
      const y = new Float32Array(n * twice);
      for (let i = 0; i < n; i++) {
        y[i * twice] = arrays.low[i * classes + c] / data.steps;
        if (twice === 2) y[i * 2 + 1] = arrays.high[i * classes + c] / data.steps;
      }
      return { type: "scatter", mode: "lines", name: plain(name), x, y, line: { color: color(c), width: 1.6,
        dash: c < 8 ? "solid" : "dash" }, hovertemplate: "%{y:.2f}" };
    });
  }

  function gaps(clip, arrays) {
    const y = Array.from(arrays.gap, (value) => value / data.steps);
    y.push(y[y.length - 1]);
    return { type: "scatter", mode: "lines", name: "no face", x: arrays.time, y, line: { width: 0, shape: "hv" },
      fill: "tozeroy", fillcolor: css("--gap"), hoverinfo: "skip" };
  }

  function strips(clip, arrays) {
    const classes = data.classes.length, scale = [];
    data.classes.forEach((_, c) => scale.push([c / classes, color(c)], [(c + 1) / classes, color(c)]));
    const rows = clip.strips.map((_, place) => place); // numbers, not names: plotly confuses equal category names
    const z = arrays.strips.map((row) => Array.from(row, (value) => (value === data.unknown ? null : value)));
    const text = z.map((row, place) => row.map((value) => plain(clip.strips[place]) + ": "
      + (value === null ? "unknown" : plain(data.classes[value]))));
    const ink = dark.matches ? "255,255,255" : "0,0,0";
    const shared = { type: "heatmap", x: arrays.time, xaxis: "x", yaxis: "y2", showscale: false, ygap: 3,
      hoverongaps: false };
    return [
      Object.assign({ z, y: rows, text, zmin: -.5, zmax: classes - .5, colorscale: scale,
        hovertemplate: "%{text}<extra></extra>" }, shared),
      Object.assign({ z: [Array.from(arrays.wrong, (value) => value / data.steps)], y: [rows.length], zmin: 0,
        zmax: 1, colorscale: [[0, "rgba(" + ink + ",0.06)"], [1e-6, "rgba(" + ink + ",0.3)"], [1, "rgba(" + ink + ",1)"]],
        hovertemplate: "%{z:.0%} of the frames wrong<extra></extra>" }, shared),
    ];
  }

  function timeline(clip) {
    const arrays = unpacked(clip);
    const layout = themed({ height: narrow() ? 480 : 470, dragmode: "zoom", hovermode: "x unified",
      margin: { l: 8, r: 36, t: 8, b: 8 }, showlegend: true,
      legend: { orientation: "h", x: 0, y: -.16, yanchor: "top" },
      xaxis: { title: { text: "time (seconds)", standoff: 6 }, hoverformat: ".2f", automargin: true, zeroline: false, anchor: "y2",
        range: [arrays.time[0], arrays.time[arrays.time.length - 1]] },
      yaxis: { title: { text: "probability (0 to 1)", standoff: 6 }, range: [0, 1.01], fixedrange: true,
        domain: [.4, 1], automargin: true, zeroline: false },
      yaxis2: { domain: [0, .37], fixedrange: true, automargin: true, range: [clip.strips.length + .5, -.5],
        showgrid: false, zeroline: false, ticks: "", tickvals: [...clip.strips.keys(), clip.strips.length],
        ticktext: [...clip.strips.map(plain), "wrong"], title: { text: "" } } });
    const traces = [gaps(clip, arrays), ...lines(clip, arrays), ...strips(clip, arrays)];
    return Plotly.react(byId("timeline"), traces, layout, CONFIG);
  }

  function faces(clip) {
    byId("strip").replaceChildren(...(clip.faces || []).map(([time, jpeg]) => {
      const picture = element("img");
      picture.src = "data:image/jpeg;base64," + jpeg;
      picture.alt = "face at " + time.toFixed(1) + " s";
      picture.addEventListener("click", () => zoom(time - 2, time + 2));
      const made = element("figure");
      made.append(picture, element("figcaption", time.toFixed(1) + " s"));
      return made;
    }));
  }

  function hovered(event) {
    const pictures = current.faces || [];
    const time = event.points[0].x;
    if (!pictures.length) return;
    const near = pictures.reduce((best, face) => (Math.abs(face[0] - time) < Math.abs(best[0] - time) ? face : best));
    byId("hover-face").src = "data:image/jpeg;base64," + near[1];
    byId("hover-time").textContent = near[0].toFixed(1) + " s";
    byId("hover").hidden = false;
  }

  function choose(clip) {
    current = clip;
    mark();
    byId("chosen").textContent = clip.name;
    byId("about").textContent = [split(clip), clip.group && clip.group !== clip.name ? "group " + clip.group : "",
      number(clip.frames) + " frames", clip.seconds.toFixed(1) + " s",
      "face in " + percent(clip.seen, clip.frames),
      clip.labelled ? number(clip.wrong) + " of " + number(clip.labelled) + " annotated frames wrong" : "no label",
    ].filter(Boolean).join(" · ");
    byId("hover").hidden = true;
    faces(clip);
    if (!clip.packed) {
      Plotly.purge(byId("timeline"));
      byId("thinned").textContent = "This clip has no timeline on this page.";
      return Promise.resolve();
    }
    byId("thinned").textContent = clip.whole ? "Every frame is drawn; probabilities are rounded to steps of .004."
      : "Each point stands for about " + Math.round(clip.frames / clip.points) + " frames: their smallest and largest "
        + "probability are both drawn, a strip shows their most frequent class.";
    const made = timeline(clip);
    if (!choose.bound) {
      byId("timeline").on("plotly_hover", hovered);
      byId("timeline").on("plotly_unhover", () => { byId("hover").hidden = true; });
      choose.bound = true;
    }
    return made;
  }

  function zoom(from, to) {
    return Plotly.relayout(byId("timeline"), { "xaxis.range": [Math.max(from, 0), to] });
  }

  // ---- mistakes ------------------------------------------------------------------------------------------------
  function swatch(place) {
    const made = element("span", undefined, "swatch");
    made.style.background = color(place);
    return made;
  }

  function card(mistake) {
    const made = element("button", undefined, "card");
    made.type = "button";
    if (mistake.face) {
      const picture = element("img");
      picture.src = "data:image/jpeg;base64," + mistake.face;
      picture.alt = "";
      made.append(picture);
    }
    const text = element("span"), predicted = element("b");
    predicted.append(swatch(mistake.label_pred), data.classes[mistake.label_pred] + " " + Math.round(100 * mistake.prob) + " %");
    const truth = element("span");
    truth.append(swatch(mistake.truth), "annotated " + data.classes[mistake.truth]);
    text.append(predicted, element("br"), truth, element("small", mistake.clip), element("small",
      mistake.start_s.toFixed(1) + " to " + mistake.end_s.toFixed(1) + " s, " + number(mistake.frames) + " frames, "
      + (data.splits[mistake.split] || mistake.split)));
    made.append(text);
    made.addEventListener("click", () => {
      const clip = data.clips.find((one) => one.name === mistake.clip);
      const room = Math.max(1, mistake.end_s - mistake.start_s);
      choose(clip).then(() => clip.packed && zoom(mistake.start_s - room, mistake.end_s + room));
      byId("clips").scrollIntoView();
    });
    return made;
  }

  function gallery() {
    const found = data.mistakes.map(card);
    byId("gallery").replaceChildren(...(found.length ? found : [element("p", "None: no class is predicted for another "
      + "in five or more annotated frames in a row.", "note")]));
  }

  byId("filter").addEventListener("input", list);
  byId("order").addEventListener("change", list);
  dark.addEventListener("change", () => {
    document.querySelectorAll("[data-drawn]").forEach(drawFigure);
    gallery();
    if (current && current.packed) timeline(current);
  });
  gallery();
  const first = list()[0];
  if (first) choose(first);
  document.documentElement.dataset.ready = "yes";
})();
