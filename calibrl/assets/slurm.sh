#!/bin/bash
# sbatch slurm.sh: two nodes train, a third one samples. The same job again goes on where this one
# stopped, so --requeue is enough for a job that is preempted.
#SBATCH --job-name=calibrl
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

MODEL=Qwen/Qwen2.5-VL-7B-Instruct
DATA=problems.jsonl
OUT=runs/cluster
HERE=$(python -c 'import calibrl; print(calibrl.__path__[0])')/assets

mapfile -t NODES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
HEAD=${NODES[0]}
SERVER=${NODES[2]}

srun --nodes=1 --ntasks=1 --nodelist="$SERVER" bash "$HERE/vllm.sh" "$MODEL" &
until curl -sf "http://$SERVER:8000/health"; do sleep 10; done

export HERE HEAD SERVER MODEL DATA OUT
srun --nodes=2 --ntasks=2 --nodelist="${NODES[0]},${NODES[1]}" bash -c '
accelerate launch --config_file "$HERE/fsdp2.yaml" --num_machines 2 --num_processes 16 \
    --machine_rank "$SLURM_PROCID" --main_process_ip "$HEAD" --main_process_port 29500 \
    -m calibrl.cli train --engine trl --vllm "http://$SERVER:8000" --model "$MODEL" \
    --data "$DATA" --bits 16 --prompts 32 --responses 8 --out "$OUT"
'
