#!/usr/bin/env bash
# Measure the networks on a GPU at 360x480 in bfloat16, beside eager and compiled PyTorch in the same
# run, in less than ten minutes. Needs an environment with segjax for the GPU. TORCH_PYTHON names the
# Python that has PyTorch; AGAINST= leaves PyTorch out. Rows are written to OUTPUT; running it again
# measures the rest. Arguments are passed to `segjax benchmark` in place of what is measured here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
output=${OUTPUT:-experiments/speed/results/benchmark_gpu.jsonl}
read -ra against <<< "${AGAINST-torch torch.compile}"
((${#against[@]} == 0)) || against=(--against "${against[@]}" --torch-python "${TORCH_PYTHON:-python3}")
end=$((SECONDS + ${BUDGET:-520})) # seconds; no measurement starts after it

# First the SegNet paper's batch size of training, then that of its times, and a large one. DeconvNet
# and FCN-8s have the options of its Table 6.
for batches in 4 "1 16"; do
  ((SECONDS < end)) || break
  # shellcheck disable=SC2206
  measured=(--precision bfloat16 --batch $batches --repeats 10
    --models segnet segnet_basic fcn8s deconvnet unet deeplab_largefov deeplab_aspp dilation8
    --options deconvnet.fc_width=1024 fcn8s.upsampling=learnt)
  (($# == 0)) || measured=("$@")
  "${SEGJAX:-segjax}" benchmark --output "$output" "${measured[@]}" \
    --seconds $((end - SECONDS)) "${against[@]}"
done
"${SEGJAX:-segjax}" table cost --results "$output"
