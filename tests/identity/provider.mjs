// A certified OpenID provider (npm: oidc-provider) on loopback with fresh keys. Prints its issuer when it listens.
import { generateKeyPairSync } from 'node:crypto';
import { createServer } from 'node:http';

import { Provider } from 'oidc-provider';

const [client, secret, ...audiences] = process.argv.slice(2);
const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
const server = createServer();
server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    jwks: { keys: [privateKey.export({ format: 'jwk' })] },
    clients: [{ client_id: client, client_secret: secret, grant_types: ['client_credentials'], redirect_uris: [], response_types: [] }],
    extraTokenClaims: () => ({ groups: ['data-scientists'] }),
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_, resource) => {
          if (!audiences.includes(resource)) throw new Error('an unknown audience');
          return { audience: resource, scope: 'models', accessTokenFormat: 'jwt', accessTokenTTL: 300 };
        },
      },
    },
  });
  server.on('request', provider.callback());
  console.log(issuer);
});
process.stdin.on('end', () => process.exit(0)).resume(); // ends with its parent
