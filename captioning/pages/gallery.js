"use strict";
const list = byId("pictures"), search = byId("search"), sort = byId("sort"), direction = byId("direction");

// What is asked of a card again and again, read once.
const cards = Array.from(list.children, (element) => {
  const values = {};
  for (const data of element.querySelectorAll(".numbers data")) values[data.dataset.key] = Number(data.value);
  return { element, place: Number(element.dataset.place), values, text: null };
});
const folded = (text) => text.normalize("NFKC").toLocaleLowerCase();
const textOf = (card) => card.text ??= folded(
  Array.from(card.element.querySelectorAll(".caption, .error, .references li, .alternatives li"), (e) => e.textContent)
    .concat(card.element.querySelector(".name").title).join("\n"));

const CHUNK = 60; // cards that are laid out at once: a browser takes most of a second for thousands
let shown = cards; // the cards that match, in their order
const keys = new Cards(list, {
  shown: () => shown.map((card) => card.element),
  layOut: (count) => fill(count + CHUNK),
});

function update() {
  const terms = folded(search.value).split(/\s+/).filter(Boolean);
  shown = cards.filter((card) => terms.every((term) => textOf(card).includes(term)));
  list.replaceChildren();
  fill(CHUNK);
  const all = cards.length.toLocaleString("en"), of = cards.length === 1 ? "picture" : "pictures";
  byId("count").textContent = terms.length ? `${shown.length.toLocaleString("en")} of ${all} ${of}` : `${all} ${of}`;
  byId("none").hidden = shown.length > 0 || cards.length === 0;
  if (!keys.shown().includes(keys.current)) keys.makeCurrent(shown[0]?.element);
}

// Lay out at least the first `count` of the cards that match; the others follow as the page is scrolled to them.
function fill(count) {
  const start = list.childElementCount, added = shown.slice(start, Math.max(start, count));
  added.forEach((card, i) => {
    card.element.ariaPosInSet = start + i + 1;
    card.element.ariaSetSize = shown.length;
  });
  for (const card of added) list.append(card.element);
}
const nearEnd = new IntersectionObserver((entries) => {
  if (!entries.at(-1).isIntersecting || list.childElementCount >= shown.length) return;
  fill(list.childElementCount + CHUNK);
  nearEnd.unobserve(byId("more")); // and anew, since the end may be as near as before
  nearEnd.observe(byId("more"));
}, { rootMargin: "2000px" });

const falling = () => direction.dataset.falling === "yes";

function order() {
  const key = sort.value, sign = falling() ? -1 : 1;
  direction.textContent = key ? (falling() ? "Highest first" : "Lowest first") : (falling() ? "Last to first" : "First to last");
  const byPlace = (a, b) => a.place - b.place;
  const byValue = (a, b) => {
    const x = a.values[key], y = b.values[key];
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined) || byPlace(a, b); // always last
    return sign * (x - y) || byPlace(a, b);
  };
  cards.sort(key ? byValue : (a, b) => sign * byPlace(a, b));
  update();
  keys.makeCurrent(shown[0]?.element);
}

function escape(event) {
  if (closeCard(event)) return;
  if (event.target === search && !search.value) {
    search.blur();
  } else if (search.value) {
    search.value = "";
    update();
    if (event.target.closest(".card")) keys.current.focus();
  }
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, select");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.altKey && !event.metaKey) {
    event.preventDefault();
    search.focus();
    search.select();
  } else if (event.key === "Escape" && event.target !== sort) {
    event.preventDefault();
    escape(event);
  } else if (event.key === "ArrowDown" && event.target === search && keys.current) {
    event.preventDefault();
    keys.current.focus();
  } else {
    keys.press(event);
  }
});
search.addEventListener("input", update);
sort.addEventListener("change", () => {
  direction.dataset.falling = sort.value ? "yes" : "no"; // the best first, as people expect it
  order();
});
direction.addEventListener("click", () => {
  direction.dataset.falling = falling() ? "no" : "yes";
  order();
});
addEventListener("beforeprint", () => fill(shown.length));
for (const id of ["controls", "keys"]) byId(id).hidden = false;
update();
list.classList.add("ready");
nearEnd.observe(byId("more"));
