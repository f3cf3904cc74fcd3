// What every map does. Words from data only ever become text nodes: nothing in them can run.
const crmlab = {
  said(text, name) {
    const words = document.createElement("span");
    words.className = name;
    words.textContent = text;
    return words;
  },
  // Many squares in one shape, the larger below the smaller: where they lie on each other is no hole.
  style: ({properties}) => ({className: `shade shade-${properties.shade}`, fillRule: properties.text ? "evenodd" : "nonzero"}),
  each(feature, layer) {
    if (feature.properties.text) layer.bindTooltip(() => crmlab.said(feature.properties.text, "said"), {sticky: true});
  },
  // A shop with its name, or a word on its own.
  point(feature, at) {
    const {kind, name, text} = feature.properties, html = document.createElement("span");
    if (kind !== "word") html.append(crmlab.said("", "dot"));
    html.append(crmlab.said(name, "name"));
    const icon = L.divIcon({className: `place ${kind}`, html, iconSize: [0, 0]});
    return L.marker(at, {icon, keyboard: false, interactive: Boolean(text)});
  },
  // Where names would lie on each other the less important ones are left out until one zooms in.
  tidy(map) {
    const box = map.getContainer(), frame = box.getBoundingClientRect();
    const taken = [...box.querySelectorAll(".dot")].map((dot) => dot.getBoundingClientRect());
    for (const name of ["own", "other", "word"].flatMap((kind) => [...box.querySelectorAll(`.${kind} .name`)])) {
      const fits = (side) => {
        name.classList.toggle("left", side === "left");
        const mine = name.getBoundingClientRect();
        const free = mine.left >= frame.left && mine.right <= frame.right && !taken.some((other) =>
          mine.left < other.right && other.left < mine.right && mine.top < other.bottom && other.top < mine.bottom);
        if (free) taken.push(mine);
        return free;
      };
      name.classList.toggle("crowded", !["right", "left"].some(fits));
    }
  },
  // Degrees at steps of 1, 2 or 5 times a power of ten, at most ten lines each way.
  grid(map, locale) {
    map.createPane("grid").style.zIndex = 350;
    map.createPane("degrees").style.zIndex = 450;
    const group = L.layerGroup().addTo(map);
    const draw = () => {
      group.clearLayers();
      const seen = map.getBounds(), wide = seen.pad(0.5);
      const across = map.getSize().x, wideness = seen.getEast() - seen.getWest();
      if (!across) return; // not laid out yet
      // So far apart that each has room for its words.
      const least = wideness * Math.max(1 / 10, 75 / across);
      const power = 10 ** Math.floor(Math.log10(least)), step = [1, 2, 5, 10].find((n) => n * power >= least) * power;
      const print = new Intl.NumberFormat(locale, {maximumFractionDigits: Math.max(0, Math.ceil(-Math.log10(step)))});
      const line = (ends, at, kind, text) => {
        L.polyline(ends, {className: "grid", pane: "grid", interactive: false}).addTo(group);
        const {x, y} = map.latLngToContainerPoint(at);
        // There are the scale, the end and the compass.
        if (kind === "longitude" ? x < 110 || x > across - 60 : y < 60) return;
        const icon = L.divIcon({className: `degrees ${kind}`, html: crmlab.said(text, ""), iconSize: [0, 0]});
        L.marker(at, {icon, pane: "degrees", keyboard: false, interactive: false}).addTo(group);
      };
      const each = (from, to, write) => { for (let n = Math.ceil(from / step); n * step <= to; n++) write(n * step); };
      each(seen.getSouth(), seen.getNorth(), (lat) =>
        line([[lat, wide.getWest()], [lat, wide.getEast()]], [lat, seen.getEast()], "latitude", `${print.format(Math.abs(lat))}° ${lat < 0 ? "S" : "N"}`));
      each(seen.getWest(), seen.getEast(), (lon) => {
        const turned = (((lon + 180) % 360) + 360) % 360 - 180;
        line([[wide.getSouth(), lon], [wide.getNorth(), lon]], [seen.getSouth(), lon], "longitude", `${print.format(Math.abs(turned))}° ${turned < 0 ? "W" : "E"}`);
      });
    };
    map.on("moveend", draw);
    draw();
  },
  // What the map is to reach is its option, so that it is there before all is drawn.
  fit() {
    // A frame that is not laid out yet has no size, and a zoom made from it would stay wrong.
    const size = this.getSize();
    if (Math.min(size.x, size.y) > 36) this.fitBounds(this.options.reach, {animate: false, padding: [18, 18]});
  },
  // For the cells that are hidden: a pattern that every map of the page uses.
  hatch() {
    if (document.getElementById("hatch")) return;
    document.body.insertAdjacentHTML("beforeend", '<svg class="patterns" aria-hidden="true" width="0" height="0"><defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect class="under" width="6" height="6"/><rect class="over" width="2" height="6"/></pattern></defs></svg>');
  },
  // `legends`: the number of each shaded layer's part of the legend, with the layer.
  finish(map, locale, plain, legends) {
    const box = map.getContainer(), figure = box.closest("figure");
    box.querySelector(".instead").remove();
    crmlab.hatch();
    map.setMinZoom(1).setMaxZoom(18);
    if (plain) crmlab.grid(map, locale);
    L.control.scale({imperial: false}).addTo(map);
    const control = box.querySelector(".leaflet-control-layers");
    if (control) figure.querySelector(".switches").append(control);
    const show = () => {
      for (const [number, layer] of legends) figure.querySelector(`[data-legend="${number}"]`).hidden = !map.hasLayer(layer);
      crmlab.tidy(map);
    };
    map.on("overlayadd overlayremove baselayerchange moveend", show);
    show();
    // One finger on a phone scrolls the page; two move the map.
    if (matchMedia("(pointer: coarse)").matches) map.dragging.disable();
    const measure = () => map.invalidateSize({pan: false});
    new ResizeObserver(measure).observe(box);
    addEventListener("beforeprint", () => { box.style.width = "16cm"; measure(); });
    addEventListener("afterprint", () => { box.style.width = ""; measure(); });
  },
};
L.Map.addInitHook(crmlab.fit);
L.Map.addInitHook("on", "resize", crmlab.fit);
