// A service that holds all flags of a set and evaluates them itself: it follows a node by flagd.sync.v1, over gRPC.
//
// node service.cjs FLAGD_SYNC_PORT PORT, then http://127.0.0.1:PORT/checkout/ann@example.com
const { createServer } = require("node:http");
const { FlagdProvider } = require("@openfeature/flagd-provider");
const { OpenFeature } = require("@openfeature/server-sdk");

const [syncPort, port] = process.argv.slice(2).map(Number);

async function page(email) {
  const client = OpenFeature.getClient();
  const user = { targetingKey: email, email };
  // The values here count if the flag is not known.
  const greeting = await client.getStringValue("greeting", "hello", user);
  const checkout = (await client.getBooleanValue("checkout", false, user)) ? "new" : "old";
  return `${greeting}, ${email}: the ${checkout} checkout\n`;
}

const server = createServer(async (request, response) => {
  const isFound = request.url.startsWith("/checkout/");
  const body = isFound ? await page(decodeURIComponent(request.url.slice(10))) : "see /checkout/EMAIL\n";
  response.writeHead(isFound ? 200 : 404, { "content-type": "text/plain; charset=utf-8" }).end(body);
});

// It serves at once; until the node is reached, its own defaults count.
OpenFeature.setProvider(new FlagdProvider({ resolverType: "in-process", host: "127.0.0.1", port: syncPort }));
server.listen(port, "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}`));
