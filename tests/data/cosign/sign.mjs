// Makes the fixtures of tests/data/cosign with @sigstore/sign 4.1.1: node sign.mjs MANIFEST OUT
import { DSSEBundleBuilder, MessageSignatureBundleBuilder } from '@sigstore/sign';
import crypto from 'node:crypto';
import fs from 'node:fs';
import { bundleToJSON } from '@sigstore/bundle';

const [, , manifestFile, out] = process.argv;
const manifest = fs.readFileSync(manifestFile);
const { privateKey, publicKey } = crypto.generateKeyPairSync('ec', { namedCurve: 'prime256v1' });
const pem = publicKey.export({ type: 'spki', format: 'pem' });
const der = publicKey.export({ type: 'spki', format: 'der' });
const hint = crypto.createHash('sha256').update(der).digest('base64');
const signer = {
  sign: async (data) => ({
    key: { $case: 'publicKey', publicKey: pem, hint },
    signature: crypto.sign('sha256', data, privateKey),
  }),
};
const digest = crypto.createHash('sha256').update(manifest).digest('hex');
const statement = {
  _type: 'https://in-toto.io/Statement/v1',
  subject: [{ digest: { sha256: digest } }],
  predicateType: 'https://sigstore.dev/cosign/sign/v1',
  predicate: {},
};
const dsse = await new DSSEBundleBuilder({ signer, witnesses: [] }).create({
  data: Buffer.from(JSON.stringify(statement)), type: 'application/vnd.in-toto+json',
});
const message = await new MessageSignatureBundleBuilder({ signer, witnesses: [] }).create({ data: manifest });
fs.writeFileSync(`${out}/cosign.pub`, pem);
fs.writeFileSync(`${out}/manifest.json`, manifest);
fs.writeFileSync(`${out}/dsse.sigstore.json`, JSON.stringify(bundleToJSON(dsse)));
fs.writeFileSync(`${out}/message.sigstore.json`, JSON.stringify(bundleToJSON(message)));
