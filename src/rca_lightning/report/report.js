"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const index = JSON.parse(byId("index").textContent);
  const { classes, colours, photos } = index;
  const BATCH = 60; // tiles at first; each time more are asked for, their number doubles
  const state = { view: 2, threshold: index.threshold, live: false, shown: [], built: 0, current: 0 };
  const gallery = byId("photos");
  const make = (name, attributes = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  };
  const percent = (share) => (share > 0 && share < 0.0995 ? (100 * share).toFixed(1) : Math.round(100 * share)) + " %";

  // Data of a photograph: unpacked when it comes into view, forgotten when it has left.
  const bytesOf = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  async function unpack(place) {
    const [picture, packed] = byId("p" + place).textContent.split(" ");
    const stream = new Blob([bytesOf(packed)]).stream().pipeThrough(new DecompressionStream("deflate"));
    const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
    const [width, height, labelWidth, labelHeight] = bytes;
    const cells = width * height;
    const values = bytes.slice(4 + cells, 4 + 2 * cells);
    for (let row = 0; row < height; row++)
      for (let at = row * width + 1; at < (row + 1) * width; at++) values[at] += values[at - 1];
    return {
      picture: picture && "data:image/jpeg;base64," + picture,
      map: { width, height, classes: bytes.subarray(4, 4 + cells), values },
      label: { width: labelWidth, height: labelHeight, classes: bytes.subarray(4 + 2 * cells) },
    };
  }
  const colourOf = (label) => colours[label - 1] ?? [236, 232, 200]; // 255: undecided

  function drawMap(canvas, { width, height, classes: labels, values }) {
    if (!width) return;
    canvas.width = width;
    canvas.height = height;
    const pixels = new ImageData(width, height);
    for (let at = 0; at < labels.length; at++) {
      if (!labels[at]) continue;
      const lift = values[at] / 100; // the strongest cells go towards white
      const colour = colourOf(labels[at]);
      for (let c = 0; c < 3; c++) pixels.data[4 * at + c] = colour[c] + (255 - colour[c]) * 0.45 * lift ** 3;
      pixels.data[4 * at + 3] = 235 * lift;
    }
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  }
  function drawMask(canvas, { width, height, classes: labels }) {
    canvas.width = width || 1;
    canvas.height = height || 1;
    if (!width) return;
    const pixels = new ImageData(width, height);
    for (let at = 0; at < labels.length; at++) {
      const label = labels[at];
      if (!label) continue;
      const x = at % width;
      const border =
        (x > 0 && labels[at - 1] !== label) || (x < width - 1 && labels[at + 1] !== label) ||
        (at >= width && labels[at - width] !== label) || (at + width < labels.length && labels[at + width] !== label);
      pixels.data.set([...colourOf(label), border ? 255 : 158], 4 * at);
    }
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  }
  // Labels of the map at a threshold, on a finer grid: values between cells are interpolated, classes are the nearest.
  function thresholded({ width, height, classes: labels, values }, threshold, fine) {
    const out = { width: width * fine, height: height * fine };
    out.classes = new Uint8Array(out.width * out.height);
    const clamp = (value, most) => Math.min(Math.max(value, 0), most);
    for (let y = 0; y < out.height; y++) {
      const v = clamp((y + 0.5) / fine - 0.5, height - 1), top = Math.floor(v), bottom = Math.min(top + 1, height - 1);
      for (let x = 0; x < out.width; x++) {
        const u = clamp((x + 0.5) / fine - 0.5, width - 1), left = Math.floor(u), right = Math.min(left + 1, width - 1);
        const upper = values[top * width + left] * (left + 1 - u) + values[top * width + right] * (u - left);
        const lower = values[bottom * width + left] * (left + 1 - u) + values[bottom * width + right] * (u - left);
        if (upper * (top + 1 - v) + lower * (v - top) > threshold)
          out.classes[y * out.width + x] = labels[Math.floor(y / fine) * width + Math.floor(x / fine)];
      }
    }
    return out;
  }
  function redrawMask({ mask, data, fine }) {
    const live = (state.live || !data.label.width) && data.map.width;
    drawMask(mask, live ? thresholded(data.map, state.threshold, fine) : data.label);
  }

  const visible = new Map(); // frame -> data and canvas
  async function fill(frame) {
    const place = +frame.dataset.place;
    if (visible.has(frame)) return;
    visible.set(frame, null);
    let data;
    try {
      data = await unpack(place);
    } catch {
      frame.replaceChildren(make("span", { class: "gone" }, "cannot be shown"));
      return;
    }
    if (!visible.has(frame) || +frame.dataset.place !== place) return; // it has left meanwhile
    const map = make("canvas", { class: "map", "aria-hidden": "true" });
    const mask = make("canvas", { class: "mask", "aria-hidden": "true" });
    const photo = data.picture
      ? make("img", { src: data.picture, alt: frame.dataset.alt || "", decoding: "async" })
      : make("span", { class: "gone" }, "photograph cannot be read");
    const held = { data, mask, fine: frame === large ? 6 : 2 };
    drawMap(map, data.map);
    redrawMask(held);
    frame.replaceChildren(photo, make("span", { class: "dim" }), map, mask);
    visible.set(frame, held);
    frame.dataset.ready = "1";
  }
  function empty(frame) {
    visible.delete(frame);
    delete frame.dataset.ready;
    frame.replaceChildren();
  }
  const watcher = new IntersectionObserver(
    (changes) => changes.forEach(({ target, isIntersecting }) => (isIntersecting ? fill(target) : empty(target))),
    { rootMargin: "600px" },
  );

  // The gallery: filtered, sorted, and built as it is scrolled.
  const altOf = (photo) => {
    const names = [...photo.t.map((label) => classes[label])];
    return `Photograph ${photo.i}, ${names.length ? "tagged " + names.join(", ") : "without tags"}`;
  };
  function describe(photo) {
    const quality = photo.q === null ? "quality unknown" : "quality " + photo.q.toFixed(2);
    return `${altOf(photo)}; ${quality}` + (photo.r.length ? `; to look at: ${photo.r.join("; ")}` : "");
  }
  const swatch = (label) => {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    for (const [key, value] of [["cx", 4], ["cy", 4], ["r", 4]]) dot.setAttribute(key, value);
    svg.setAttribute("viewBox", "0 0 8 8");
    svg.setAttribute("class", "swatch c" + label);
    svg.setAttribute("aria-hidden", "true");
    svg.append(dot);
    return svg;
  };
  function tileOf(place, position) {
    const photo = photos[place];
    const frame = make("span", { class: "frame", "data-place": place, "data-alt": altOf(photo) });
    const tags = [...new Set([...photo.t, ...Object.keys(photo.d).map(Number)])].map((label) =>
      make("span", {}, swatch(label), " ", classes[label]));
    const flag = photo.r.length ? [make("span", { class: "flag", title: photo.r.join("\n") }, "look")] : [];
    const button = make(
      "button",
      { type: "button", class: "tile", tabindex: position === state.current ? 0 : -1, "aria-label": describe(photo), "data-place": place },
      frame,
      ...flag,
      make("span", { class: "caption" }, make("span", { class: "id", title: photo.i }, make("bdi", {}, photo.i)),
        make("span", { class: "q" }, photo.q === null ? "" : photo.q.toFixed(2))),
      make("span", { class: "tags" }, ...tags),
    );
    button.addEventListener("click", () => open(position));
    watcher.observe(frame);
    return make("li", {}, button);
  }
  function build(until) {
    const last = Math.min(until, state.shown.length);
    const tiles = document.createDocumentFragment();
    for (; state.built < last; state.built++) tiles.append(tileOf(state.shown[state.built], state.built));
    gallery.append(tiles);
    showMore();
  }
  function showMore() {
    const left = state.shown.length - state.built;
    byId("more").hidden = !left;
    byId("more").textContent = `Show ${Math.min(left, state.built).toLocaleString("en")} more of ${left.toLocaleString("en")}`;
  }
  byId("more").addEventListener("click", () => {
    const first = state.built;
    build(2 * first);
    focusOn(first);
  });
  function choose() {
    const wanted = new Set([...document.querySelectorAll("input[name=class]:checked")].map((box) => +box.value));
    const name = byId("search").value.trim().toLowerCase();
    const odd = byId("odd").checked;
    state.shown = [...photos.keys()].filter((place) => {
      const photo = photos[place];
      return (
        (!wanted.size || photo.t.some((label) => wanted.has(label)) || Object.keys(photo.d).some((label) => wanted.has(+label))) &&
        (!odd || photo.r.length) && (!name || photo.i.toLowerCase().includes(name))
      );
    });
    const order = byId("sort").value;
    if (order === "high") state.shown.reverse();
    if (order === "name") state.shown.sort((a, b) => (photos[a].i < photos[b].i ? -1 : photos[a].i > photos[b].i ? 1 : 0));
    gallery.querySelectorAll(".frame").forEach((frame) => { watcher.unobserve(frame); visible.delete(frame); });
    gallery.replaceChildren();
    state.built = state.current = 0;
    byId("count").textContent = `${state.shown.length.toLocaleString("en")} of ${photos.length.toLocaleString("en")} photographs`;
    build(BATCH);
    if (!state.shown.length) gallery.append(make("li", { class: "none" }, "No photograph fits these filters."));
  }

  // Keyboard: one stop of Tab, arrows within.
  function focusOn(position) {
    const next = Math.min(Math.max(position, 0), state.shown.length - 1);
    if (next < 0) return;
    build(next + 1);
    const tiles = gallery.children;
    tiles[state.current]?.firstChild.setAttribute("tabindex", -1);
    state.current = next;
    const button = tiles[next].firstChild;
    button.setAttribute("tabindex", 0);
    button.focus({ preventScroll: true });
    const show = () => document.activeElement === button && button.scrollIntoView({ block: "nearest", behavior: "instant" });
    show();
    requestAnimationFrame(show); // tiles that were never drawn have a height now
  }
  const columns = () => getComputedStyle(gallery).gridTemplateColumns.split(" ").length;
  gallery.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = {
      ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns(), Home: -state.current,
      End: state.shown.length, PageDown: 4 * columns(), PageUp: -4 * columns(),
    };
    if (!(event.key in steps)) return;
    event.preventDefault();
    focusOn(state.current + steps[event.key]);
  });
  gallery.addEventListener("focusin", (event) => {
    const item = event.target.closest("li");
    const position = [...gallery.children].indexOf(item);
    if (position < 0 || position === state.current) return;
    gallery.children[state.current]?.firstChild.setAttribute?.("tabindex", -1);
    state.current = position;
    item.firstChild.setAttribute("tabindex", 0);
  });

  // Sliders: those of the page and of the dialog say the same.
  function showView() {
    document.documentElement.style.setProperty("--map", Math.max(0, 1 - Math.abs(state.view - 1)));
    document.documentElement.style.setProperty("--mask", Math.max(0, state.view - 1));
    const words = ["photograph", "map", "mask"];
    document.querySelectorAll(".view").forEach((slider) => {
      slider.value = state.view;
      const near = Math.round(state.view);
      slider.setAttribute("aria-valuetext", Math.abs(near - state.view) < 0.01 ? words[near] : `between ${words[Math.floor(state.view)]} and ${words[Math.ceil(state.view)]}`);
    });
  }
  let waiting = 0;
  function showThreshold() {
    document.querySelectorAll(".threshold").forEach((slider) => {
      slider.value = state.threshold;
      slider.setAttribute("aria-valuetext", state.live ? `${state.threshold} percent` : `masks as written; ${state.threshold} percent`);
    });
    document.querySelectorAll(".slider output").forEach((output) => {
      output.textContent = state.live ? (state.threshold / 100).toFixed(2) : "as written";
    });
    document.querySelectorAll(".written").forEach((button) => (button.disabled = !state.live));
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => visible.forEach((held) => held && redrawMask(held)));
  }
  document.addEventListener("input", ({ target }) => {
    if (target.matches(".view")) {
      state.view = +target.value;
      showView();
    } else if (target.matches(".threshold")) {
      state.threshold = +target.value;
      state.live = true;
      if (state.view < 1.5) { state.view = 2; showView(); }
      showThreshold();
    } else if (target.matches("#search, #sort, #odd, input[name=class]")) choose();
  });
  document.addEventListener("click", ({ target }) => {
    if (!target.matches(".written")) return;
    state.live = false;
    target.parentElement.querySelector("input").focus();
    showThreshold();
  });

  // One photograph, large.
  const detail = byId("detail");
  const large = byId("d-frame");
  let opened = 0, from = null, single = null;
  function open(position, place = null) {
    single = place;
    opened = position;
    from = document.activeElement;
    if (!detail.open) detail.showModal();
    show();
  }
  function show() {
    const place = single ?? state.shown[opened];
    const photo = photos[place];
    byId("d-name").textContent = photo.i;
    const quality = photo.q === null ? "" : ` Quality ${photo.q.toFixed(2)}.`;
    byId("d-place").textContent = (single === null ? `${opened + 1} of ${state.shown.length}.` : "") + quality + (photo.m ? "" : " No map was kept.");
    byId("d-reasons").replaceChildren(...photo.r.map((reason) => make("li", {}, reason)));
    const labels = [...new Set([...photo.t, ...Object.keys(photo.d).map(Number)])];
    byId("d-classes").tBodies[0].replaceChildren(...labels.map((label) =>
      make("tr", {}, make("th", { scope: "row" }, swatch(label), " ", classes[label]),
        make("td", {}, photo.t.includes(label) ? "yes" : "no"), make("td", { class: "n" }, percent(photo.d[label] ?? 0)))));
    byId("prev").disabled = single !== null || opened === 0;
    byId("next").disabled = single !== null || opened >= state.shown.length - 1;
    empty(large);
    large.dataset.place = place;
    large.dataset.alt = altOf(photo);
    fill(large);
  }
  function step(by) {
    if (single !== null || opened + by < 0 || opened + by >= state.shown.length) return;
    opened += by;
    show();
  }
  byId("prev").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  detail.addEventListener("keydown", (event) => {
    if (event.target.matches("input")) return;
    if (event.key === "ArrowRight") step(1);
    if (event.key === "ArrowLeft") step(-1);
  });
  detail.addEventListener("click", (event) => { if (event.target === detail) detail.close(); });
  detail.addEventListener("close", () => {
    empty(large);
    if (single === null) focusOn(opened);
    else from?.focus();
  });

  // Thumbnails of the list of what to look at.
  const places = new Map(photos.map((photo, place) => [photo.i, place]));
  document.querySelectorAll(".look").forEach((button) => {
    const place = places.get(button.dataset.id);
    if (place === undefined) return;
    const frame = make("span", { class: "frame", "data-place": place });
    button.querySelector(".thumb").append(frame);
    watcher.observe(frame);
    button.addEventListener("click", () => open(0, place));
  });
  showView();
  showThreshold();
  choose();
  document.documentElement.dataset.ready = "1";
})();
