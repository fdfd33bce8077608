// A real OpenID Connect issuer (npm oidc-provider) on a loopback port: node issuer.mjs PORT
// Beside its own pages it has POST /rotate, which makes a new key, and POST /id-token?audience=…,
// which returns an ID token with the claims in the body.
import { generateKeyPairSync } from 'node:crypto';
import http from 'node:http';
import { Provider } from 'oidc-provider';

const port = Number(process.argv[2]);
let provider;
let serve;
let keys = 0;

function rotate() {
  keys += 1;
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const key = { ...privateKey.export({ format: 'jwk' }), kid: `key-${keys}`, use: 'sig', alg: 'ES256' };
  const clients = ['millpond', 'elsewhere'].map((id) => ({
    client_id: id,
    client_secret: 'secret',
    redirect_uris: [],
    response_types: [],
    grant_types: ['client_credentials'],
    id_token_signed_response_alg: 'ES256',
  }));
  provider = new Provider(`http://127.0.0.1:${port}`, {
    clients,
    jwks: { keys: [key] },
    features: { clientCredentials: { enabled: true }, devInteractions: { enabled: false } },
  });
  serve = provider.callback();
}

async function body(request) {
  let text = '';
  for await (const piece of request) text += piece;
  return JSON.parse(text || '{}');
}

async function idToken(request, url) {
  const client = await provider.Client.find(url.searchParams.get('audience'));
  const claims = await body(request);
  const token = new provider.IdToken({ sub: claims.sub }, { ctx: { oidc: { client } } });
  token.scope = 'openid';
  for (const [name, value] of Object.entries(claims)) token.set(name, value);
  const expiresAt = Math.floor(Date.now() / 1000) + Number(url.searchParams.get('seconds') ?? 600);
  return token.issue({ use: 'idtoken', expiresAt });
}

rotate();
http
  .createServer(async (request, response) => {
    const url = new URL(request.url, provider.issuer);
    if (request.method === 'POST' && url.pathname === '/rotate') {
      rotate();
      response.end();
    } else if (request.method === 'POST' && url.pathname === '/id-token') {
      response.end(await idToken(request, url));
    } else {
      serve(request, response);
    }
  })
  .listen(port, '127.0.0.1');
