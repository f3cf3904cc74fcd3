"use strict";
// Tables: a click on a heading sorts; more than ten rows are folded away. The front page: search, ages.
for (const table of document.querySelectorAll("main table:has(tbody tr:nth-child(4))")) {
  if (table.closest("#about")) continue;
  const body = table.tBodies[0], rows = [...body.rows];
  const number = (cell) => (cell && "value" in cell.dataset ? Number(cell.dataset.value) : -Infinity);
  const text = (cell) => (cell ? cell.textContent : "");
  [...(table.tHead ? table.tHead.rows[0].cells : [])].forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") !== "descending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const numeric = heading.classList.contains("num");
      const sorted = [...rows].sort((one, other) => {
        const [a, b] = [one.cells[column], other.cells[column]];
        const order = numeric ? number(a) - number(b) : text(a).localeCompare(text(b), undefined, {numeric: true});
        return down ? -order : order;
      });
      body.append(...sorted);
      fold();
    });
  });
  const more = document.createElement("button");
  more.type = "button";
  more.className = "more";
  let folded = rows.length > 12;
  const fold = () => {
    [...body.rows].forEach((row, place) => row.classList.toggle("folded", folded && place >= 10));
    more.textContent = folded ? `Show all ${rows.length} rows` : "Show the first ten only";
    more.setAttribute("aria-expanded", String(!folded));
  };
  if (folded) {
    more.addEventListener("click", () => { folded = !folded; fold(); });
    table.closest(".scroll").after(more);
    fold();
  }
}
for (const time of document.querySelectorAll("time[datetime]")) {
  const hours = (Date.now() - Date.parse(time.dateTime)) / 36e5;
  const said = new Intl.RelativeTimeFormat("en", {numeric: "auto"});
  if (hours >= 1) time.after(` (${hours < 36 ? said.format(-Math.round(hours), "hour") : said.format(-Math.round(hours / 24), "day")})`);
}
for (const state of document.querySelectorAll("[data-due]")) {
  if (state.dataset.due && Date.now() - Date.parse(state.dataset.due) > 36e5) {
    state.textContent = "late";
    state.className = "state bad";
  }
}
const find = document.getElementById("find");
if (find) {
  find.closest("p").hidden = false;
  const things = [...document.querySelectorAll(".findable")];
  const texts = things.map((thing) => `${thing.closest("section").querySelector("h2").textContent} ${thing.closest("article").querySelector("h3").textContent} ${thing.textContent}`.toLowerCase());
  find.addEventListener("input", () => {
    const words = find.value.toLowerCase().split(/\s+/);
    let count = 0;
    things.forEach((thing, place) => {
      const shown = words.every((word) => texts[place].includes(word));
      thing.classList.toggle("lost", !shown);
      count += shown;
    });
    for (const box of document.querySelectorAll("article, section")) {
      const inside = box.matches(".findable") ? [box] : [...box.querySelectorAll(".findable")];
      box.classList.toggle("lost", inside.every((thing) => thing.classList.contains("lost")));
    }
    document.getElementById("found").textContent = find.value ? `${count} of ${things.length}` : "";
  });
}
