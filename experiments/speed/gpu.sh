#!/usr/bin/env bash
# What a GPU has to show, in less than ten minutes: the networks at 360x480 in bfloat16, beside
# PyTorch eager and compiled in the same run. Needs an environment with segjax on the GPU; PyTorch's
# is named by TORCH_PYTHON, or AGAINST= leaves it out. Rows are kept in OUTPUT; what time did not
# suffice for is measured when it is run again. Arguments go to `segjax benchmark`, and win.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
output=${OUTPUT:-experiments/speed/results/benchmark_gpu.jsonl}
read -ra against <<< "${AGAINST-torch torch.compile}"
((${#against[@]} == 0)) || against=(--against "${against[@]}" --torch-python "${TORCH_PYTHON:-python3}")
end=$((SECONDS + ${BUDGET:-520})) # seconds; what is begun by then is measured

# The SegNet paper's batch of training first, then that of its times, and a large one. DeconvNet and
# FCN-8s are as in its Table 6.
for batches in 4 "1 16"; do
  ((SECONDS < end)) || break
  # shellcheck disable=SC2086
  "${SEGJAX:-segjax}" benchmark --output "$output" --precision bfloat16 --batch $batches \
    --models segnet segnet_basic fcn8s deconvnet unet deeplab_largefov deeplab_aspp dilation8 \
    --options deconvnet.fc_width=1024 fcn8s.upsampling=learnt \
    --repeats 10 --seconds $((end - SECONDS)) "${against[@]}" "$@"
done
"${SEGJAX:-segjax}" table cost --results "$output"
