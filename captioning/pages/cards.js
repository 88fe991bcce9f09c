"use strict";
const byId = (id) => document.getElementById(id);

// Moves between the cards of a list by keyboard. Tab reaches one card, the current one; arrows, Home and End choose
// another; Enter opens what a card has more, or closes it where all is open.
//
// shown() gives the elements that can be moved to, in their order; layOut(count) puts the first `count` of them onto the
// page, where it does not hold all.
class Cards {
  current = null;

  constructor(list, { shown = () => Array.from(list.children), layOut = () => {} } = {}) {
    Object.assign(this, { list, shown, layOut });
    list.addEventListener("focusin", (event) => this.makeCurrent(event.target.closest(".card")));
  }

  // The card that Tab reaches; none without an element.
  makeCurrent(element) {
    if (this.current) this.current.tabIndex = -1;
    this.current = element ?? null;
    if (this.current) this.current.tabIndex = 0;
  }

  // Whether a key that was pressed on a card has moved from it or opened it.
  press(event) {
    if (!event.target.matches(".card") || event.ctrlKey || event.altKey || event.metaKey) return false;
    const shown = this.shown(), from = shown.indexOf(event.target), columns = () => this.columns();
    if (event.key === "Enter") {
      openOrClose(event.target);
      return true;
    }
    const steps = { ArrowRight: () => 1, ArrowLeft: () => -1, ArrowDown: columns, ArrowUp: () => -columns(),
      Home: () => -Infinity, End: () => Infinity };
    if (!(event.key in steps)) return false;
    event.preventDefault();
    const to = Math.max(0, Math.min(shown.length - 1, from + steps[event.key]()));
    this.layOut(to + 1);
    this.focus(shown[to]);
    return true;
  }

  focus(element = this.current) {
    this.makeCurrent(element);
    element?.focus({ preventScroll: true });
    element?.scrollIntoView({ block: "nearest" });
  }

  columns() {
    return getComputedStyle(this.list).gridTemplateColumns.split(" ").length;
  }
}

// Open or close all that a card has folded; without `open`, close it where all is open, and open it else.
function openOrClose(card, open) {
  const parts = Array.from(card.querySelectorAll("details"));
  open ??= !parts.every((part) => part.open);
  for (const part of parts) part.open = open;
}

// Close what is open in the card that holds the event's target, which then has the focus; whether something was.
function closeCard(event) {
  const card = event.target.closest(".card");
  if (!card?.querySelector("details[open]")) return false;
  openOrClose(card, false);
  card.focus();
  return true;
}
