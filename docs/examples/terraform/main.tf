# Deploys the packaged template as a CloudFormation stack. docs/deployment.md, "Other tools", says how to make it.
terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.0"
    }
  }
}

variable "bucket" {
  description = "The bucket that holds the functions' archives; the template is put beside them."
  type        = string
}

variable "client_id" {
  description = "The client id of the marketplace app."
  type        = string
}

variable "parameters" {
  description = "Further parameters of template.yaml, by name. No secret belongs here."
  type        = map(string)
  default     = {}
}

# The template is larger than CloudFormation takes in a request, so it is read from the bucket.
resource "aws_s3_object" "template" {
  bucket = var.bucket
  key    = "hoopai-relay/${filesha256("${path.module}/packaged.yaml")}.yaml"
  source = "${path.module}/packaged.yaml"
}

data "aws_s3_bucket" "this" {
  bucket = var.bucket
}

resource "aws_cloudformation_stack" "relay" {
  name         = "hoopai-relay"
  template_url = "https://${data.aws_s3_bucket.this.bucket_regional_domain_name}/${aws_s3_object.template.key}"
  # AUTO_EXPAND: the template has SAM's transform.
  capabilities = ["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"]
  parameters   = merge({ ClientId = var.client_id }, var.parameters)

  # An update waits for the canary of each function.
  timeouts {
    create = "30m"
    update = "60m"
  }

  lifecycle {
    prevent_destroy = true
  }
}

output "outputs" {
  description = "The stack's outputs: CallbackUrl, WebhookUrl, PutClientSecret and the others."
  value       = aws_cloudformation_stack.relay.outputs
}
