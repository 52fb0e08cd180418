#!/bin/bash
# vllm.sh MODEL [PORT]: the server that samples for `calibrl train --engine trl --vllm http://HOST:PORT`,
# on GPUs and in an environment of its own, with the options that TRL 1.16 asks for.
set -euo pipefail
export VLLM_SERVER_DEV_MODE=1
exec vllm serve "$1" --port "${2:-8000}" \
    --weight-transfer-config '{"backend": "nccl"}' \
    --logprobs-mode processed_logprobs --max-logprobs -1
