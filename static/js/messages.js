// Telling people: mistakes in a toast, endings to screen readers, a few at a time.

const QUIET_MS = 4000;

const toast = document.querySelector("[data-toast]");
const announcer = document.querySelector("[data-announcer]");
let hiding = 0;
let ended = [];
let speaking = 0;

export function complain(error) {
  tell(error instanceof Error ? error.message : String(error));
}

export function tell(text) {
  toast.textContent = text;
  toast.hidden = false;
  clearTimeout(hiding);
  hiding = setTimeout(() => { toast.hidden = true; }, 8000);
}

// Progress is never announced, only what came to an end, and several endings in one sentence.
export function announceEnd(view) {
  ended.push(`${view.texts.title}: ${view.texts.state.toLowerCase()}`);
  if (!speaking) speaking = setTimeout(speak, QUIET_MS);
}

function speak() {
  speaking = 0;
  const shown = ended.slice(0, 3).join(". ");
  announcer.textContent = ended.length > 3 ? `${shown}, and ${ended.length - 3} more.` : `${shown}.`;
  ended = [];
}
