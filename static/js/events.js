// One stream per page. A hidden page lets go of it and takes a fresh snapshot when it is seen again, so that many open
// tabs don't use up the connections that a browser grants to one site.

const HIDDEN_MS = 20000;
const KINDS = ["job", "cell", "table", "queue", "network", "removed"];

export class Live {
  constructor(query, handlers) {
    this.address = `/api/events${query}`;
    this.handlers = handlers;
    this.source = null;
    this.leaving = 0;
    document.addEventListener("visibilitychange", () => this.seen());
    window.addEventListener("pagehide", () => this.close());
    window.addEventListener("pageshow", (event) => { if (event.persisted) this.open(); });
    this.open();
  }

  open() {
    if (this.source && this.source.readyState !== EventSource.CLOSED) return;
    this.source = new EventSource(this.address);
    for (const kind of KINDS) {
      this.source.addEventListener(kind, (event) => this.take(kind, JSON.parse(event.data)));
    }
    this.source.addEventListener("snapshot", (event) => {
      for (const item of JSON.parse(event.data).items) this.take(item.event, item.data);
    });
    this.source.addEventListener("error", () => {
      // After an answer other than 200 a browser gives up by itself; the lab may only be restarting.
      if (this.source.readyState === EventSource.CLOSED) setTimeout(() => this.open(), 3000);
    });
  }

  close() {
    this.source?.close();
  }

  seen() {
    clearTimeout(this.leaving);
    if (document.hidden) this.leaving = setTimeout(() => this.close(), HIDDEN_MS);
    else this.open();
  }

  take(kind, data) {
    this.handlers[kind]?.(data);
  }
}
