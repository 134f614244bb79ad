/** Keeps the page and its model on this machine, so that it works offline. */

declare const FILES: string[]; // set by the build
declare const VERSION: string; // changes with any of them

const scope = self as unknown as ServiceWorkerScope;

scope.addEventListener("install", (event) => {
  // "no-cache": ask the server whether the files in the browser's cache are of this version.
  const requests = FILES.map((name) => new Request(name, { cache: "no-cache" }));
  event.waitUntil(caches.open(VERSION).then((cache) => cache.addAll(requests)).then(() => scope.skipWaiting()));
});

scope.addEventListener("activate", (event) => {
  const outdated = caches.keys().then((names) => names.filter((name) => name !== VERSION));
  event.waitUntil(outdated.then((names) => Promise.all(names.map((name) => caches.delete(name)))).then(() => scope.clients.claim()));
});

scope.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET") return;
  const found = caches.match(event.request, { ignoreSearch: true });
  event.respondWith(found.then((response) => response ?? fetch(event.request)));
});

// What TypeScript declares only for service workers alone.
interface ExtendableEvent extends Event {
  waitUntil(work: Promise<unknown>): void;
}
interface FetchEvent extends ExtendableEvent {
  readonly request: Request;
  respondWith(response: Promise<Response>): void;
}
interface ServiceWorkerScope {
  readonly clients: { claim(): Promise<void> };
  skipWaiting(): Promise<void>;
  addEventListener(type: "install" | "activate", listener: (event: ExtendableEvent) => void): void;
  addEventListener(type: "fetch", listener: (event: FetchEvent) => void): void;
}

export {};
