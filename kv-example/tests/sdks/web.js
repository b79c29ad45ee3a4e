// The page of `sdks.rs`: the web SDK with its provider for OFREP, as an application uses them.
import { OpenFeature, ProviderEvents } from "@openfeature/web-sdk";
import { OFREPWebProvider } from "@openfeature/ofrep-web-provider";

// What the provider was answered, and what it told.
window.answers = [];
window.told = [];

const fetchImplementation = async (request, options) => {
  const answer = await fetch(request, options);
  window.answers.push({ status: answer.status, etag: answer.headers.get("etag") });
  return answer;
};

window.connect = async (domain, baseUrl, token, targetingKey) => {
  const headers = [["X-API-Key", token]];
  const provider = new OFREPWebProvider({ baseUrl, headers, cacheMode: "disabled", fetchImplementation });
  const client = OpenFeature.getClient(domain);
  for (const event of Object.values(ProviderEvents)) {
    client.addHandler(event, (details) => window.told.push([event, details?.flagsChanged ?? []]));
  }
  await OpenFeature.setProviderAndWait(domain, provider, { targetingKey });
  window.client = client;
};

window.become = (domain, targetingKey) => OpenFeature.setContext(domain, { targetingKey });
