// Asking the lab for something. Changes carry the page's token; what goes wrong becomes a sentence.

const token = document.querySelector('meta[name="csrf-token"]').content;

async function answer(response) {
  const body = await response.json().catch(() => ({ cause: `The lab answered ${response.status}` }));
  if (response.ok) return body;
  throw new Error([body.cause, body.remedy].filter(Boolean).map(sentence).join(" "));
}

function sentence(text) {
  const begun = text[0].toUpperCase() + text.slice(1);
  return /[.?!]$/.test(begun) ? begun : `${begun}.`;
}

export async function get(path, options = {}) {
  return answer(await fetch(path, options));
}

export async function send(method, path, body, options = {}) {
  const headers = { "X-CSRF-Token": token };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  return answer(await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), ...options }));
}

async function sendFiles(path, files) {
  const form = new FormData();
  for (const file of files) form.append("picture", file, file.name || "Picture");
  return answer(await fetch(path, { method: "POST", headers: { "X-CSRF-Token": token }, body: form }));
}

export async function upload(files) {
  return (await sendFiles("/api/pictures", files)).pictures;
}

export async function uploadMasks(files) {
  return (await sendFiles("/api/masks", files)).masks;
}
