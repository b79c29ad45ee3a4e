// A page that shows what its user gets, and changes by itself when a flag is changed. It asks a node by OFREP, and hears
// of changes by server-sent events.
//
// The node's address is given as page.html?node=http://127.0.0.1:8080. The node has to permit this page:
// --ofrep-origin http://127.0.0.1:8000
import { OFREPWebProvider } from "@openfeature/ofrep-web-provider";
import { OpenFeature, ProviderEvents } from "@openfeature/web-sdk";

const user = document.querySelector("#user");
const said = document.querySelector("#said");
const client = OpenFeature.getClient();

function show() {
  // The values here count until the node has answered, and if it does not know the flag.
  const greeting = client.getStringValue("greeting", "hello");
  const checkout = client.getBooleanValue("checkout", false) ? "new" : "old";
  said.textContent = `${greeting}, ${user.value}: the ${checkout} checkout`;
}

const { Ready, ConfigurationChanged, ContextChanged } = ProviderEvents;
for (const event of [Ready, ConfigurationChanged, ContextChanged]) client.addHandler(event, show);
const context = () => ({ targetingKey: user.value, email: user.value });
user.addEventListener("change", () => OpenFeature.setContext(context()));

const baseUrl = new URLSearchParams(location.search).get("node") ?? "http://127.0.0.1:8080";
OpenFeature.setProvider(new OFREPWebProvider({ baseUrl }), context());
show();
