const channel = new MessageChannel();
const resolvers: (() => void)[] = [];
channel.port1.onmessage = () => resolvers.shift()?.();

/** Let the messages that have arrived be handled first. Unlike a timer, this never waits. */
export function turn(): Promise<void> {
  return new Promise((resolve) => {
    resolvers.push(resolve);
    channel.port2.postMessage(null);
  });
}
