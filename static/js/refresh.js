// Takes a part of this page anew from the lab, where more changed than words and pictures.

let underWay = null;
let again = false;

export function refresh(selector) {
  again = again || underWay !== null; // what is on its way may have been written before the latest change
  underWay ??= refreshed(selector).finally(() => { underWay = null; });
  return underWay;
}

async function refreshed(selector) {
  do {
    await new Promise((resolve) => setTimeout(resolve, 300)); // several changes at once are one
    again = false;
    await replace(selector);
  } while (again);
}

async function replace(selector) {
  const response = await fetch(location.href);
  if (!response.ok) return;
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html").querySelector(selector);
  const stale = document.querySelector(selector);
  if (!fresh || !stale) return;
  const focused = stale.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
  stale.replaceWith(document.adoptNode(fresh));
  if (focused) fresh.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
}
