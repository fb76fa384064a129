// Takes a part of this page anew from the lab, where more changed than words and pictures.

let waiting = null;

export function refresh(selector) {
  waiting ??= later(selector).finally(() => { waiting = null; });
  return waiting;
}

async function later(selector) {
  await new Promise((resolve) => setTimeout(resolve, 300)); // several changes at once are one
  const response = await fetch(location.href);
  if (!response.ok) return;
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html").querySelector(selector);
  const stale = document.querySelector(selector);
  if (!fresh || !stale) return;
  const focused = stale.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
  stale.replaceWith(document.adoptNode(fresh));
  if (focused) fresh.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
}
