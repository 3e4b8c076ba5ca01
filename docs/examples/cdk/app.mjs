// Deploys the packaged template as a nested stack. docs/deployment.md, "Other tools", says how to make it.
//   npm install && npx cdk deploy --app "node app.mjs" --context clientId=<the app's client id>
import { App, CfnOutput, CfnStack, Stack } from "aws-cdk-lib";
import { Asset } from "aws-cdk-lib/aws-s3-assets";

const app = new App();
const stack = new Stack(app, "hoopai-relay", { terminationProtection: true });

// The template is larger than CloudFormation takes in a request, so CDK uploads it as an asset.
const template = new Asset(stack, "Template", { path: process.env.TEMPLATE ?? "packaged.yaml" });
const clientId = app.node.tryGetContext("clientId");
if (!clientId) throw new Error("name the app: --context clientId=…");

const relay = new CfnStack(stack, "Relay", {
  templateUrl: template.httpUrl,
  // Further parameters of template.yaml. No secret belongs here.
  parameters: { ClientId: clientId },
});

for (const name of ["InstallUrl", "CallbackUrl", "WebhookUrl", "RelayUrl", "PutClientSecret", "OperatorEnvironment"]) {
  new CfnOutput(stack, name, { value: relay.getAtt(`Outputs.${name}`).toString() });
}
