// An OpenID provider for tests: strict rotation with reuse detection, PKCE, devices, revocation, registration.
//
// Whoever comes is signed in as `login_hint`, or ada, and consents to everything, so that a test can be the browser.
// Arguments: the folder of the installed package, and options as JSON. The first line it prints is its address.
import http from 'node:http'
import path from 'node:path'
import { pathToFileURL } from 'node:url'

const [folder, optionsText] = process.argv.slice(2)
const options = JSON.parse(optionsText)
const entry = path.join(folder, 'node_modules', 'oidc-provider', 'lib', 'index.js')
const { Provider } = await import(pathToFileURL(entry).href)

const state = { token_calls: 0, refreshed: 0, refused: 0, grants_revoked: 0 }

const server = http.createServer()
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
const issuer = `http://127.0.0.1:${server.address().port}`

const client = (id, more) => ({
  client_id: id,
  redirect_uris: options.redirect_uris,
  grant_types: [
    'authorization_code',
    'refresh_token',
    'client_credentials',
    'urn:ietf:params:oauth:grant-type:device_code',
  ],
  response_types: ['code'],
  ...more,
})

const provider = new Provider(issuer, {
  clients: [
    client('holdfast-basic', { client_secret: 'client-secret-canary-basic', token_endpoint_auth_method: 'client_secret_basic' }),
    client('holdfast-post', { client_secret: 'client-secret-canary-post', token_endpoint_auth_method: 'client_secret_post' }),
    client('holdfast-public', { token_endpoint_auth_method: 'none', grant_types: ['authorization_code', 'refresh_token'] }),
  ],
  cookies: { keys: ['a key of tests'] },
  clientBasedCORS: () => false,
  findAccount: (_ctx, id) => ({
    accountId: id,
    claims: () => ({ sub: id, email: `${id}@example.com`, email_verified: true, name: id }),
  }),
  claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name'] },
  // Claims of the scopes stand in the ID token too.
  conformIdTokenClaims: false,
  scopes: ['openid', 'offline_access', 'email', 'profile', 'read', 'write'],
  pkce: { required: () => true },
  rotateRefreshToken: () => options.rotate,
  issueRefreshToken: async (_ctx, given, source) =>
    given.grantTypeAllowed('refresh_token') && source.scopes.has('offline_access'),
  ttl: {
    AccessToken: () => options.access_token_seconds,
    RefreshToken: () => 14 * 24 * 3600,
    Session: () => 3600,
    Interaction: () => 3600,
    Grant: () => 14 * 24 * 3600,
    IdToken: () => 300,
    DeviceCode: () => 600,
    ClientCredentials: () => options.access_token_seconds,
  },
  interactions: { url: (_ctx, interaction) => `/automatic/${interaction.uid}` },
  features: {
    devInteractions: { enabled: false },
    deviceFlow: { enabled: true, charset: 'base-20' },
    revocation: { enabled: true },
    clientCredentials: { enabled: true },
    registration: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => undefined,
      useGrantedResource: () => true,
      getResourceServerInfo: (_ctx, resource) => ({
        scope: 'read write',
        audience: resource,
        accessTokenFormat: 'jwt',
        accessTokenTTL: options.access_token_seconds,
      }),
    },
  },
})

provider.on('grant.success', (ctx) => {
  if (ctx.oidc.params.grant_type === 'refresh_token') state.refreshed += 1
})
provider.on('grant.error', () => { state.refused += 1 })
provider.on('grant.revoked', () => { state.grants_revoked += 1 })

provider.use(async (ctx, next) => {
  if (ctx.path === '/state') {
    ctx.body = state
    return
  }
  if (ctx.method === 'POST' && ctx.path === '/token') state.token_calls += 1
  if (!ctx.path.startsWith('/automatic/')) return next()
  const { prompt, params, session } = await provider.interactionDetails(ctx.req, ctx.res)
  if (prompt.name === 'login') {
    const login = { accountId: params.login_hint ?? 'ada' }
    return provider.interactionFinished(ctx.req, ctx.res, { login }, { mergeWithLastSubmission: false })
  }
  const grant = new provider.Grant({ accountId: session.accountId, clientId: params.client_id })
  const { missingOIDCScope, missingOIDCClaims, missingResourceScopes } = prompt.details
  if (missingOIDCScope) grant.addOIDCScope(missingOIDCScope.join(' '))
  if (missingOIDCClaims) grant.addOIDCClaims(missingOIDCClaims)
  for (const [resource, scopes] of Object.entries(missingResourceScopes ?? {})) {
    grant.addResourceScope(resource, scopes.join(' '))
  }
  const consent = { grantId: await grant.save() }
  return provider.interactionFinished(ctx.req, ctx.res, { consent }, { mergeWithLastSubmission: true })
})

server.on('request', provider.callback())
console.log(`listening on ${issuer}`)
