% G, C and mIoU by the formulas of the SegNet authors' compute_test_results.m, for make_scores.py.
%
% octave --quiet scores.m FILE.mat
%
% The file has labels and predictions, of one shape, and K. Prints %.17g: G, C, mIoU, the recall of
% each class, the IoU of each class.
load(argv(){1});
truth = double(labels(:));
guess = double(predictions(:));
counted = truth < K;  % void is not
cf = accumarray([truth(counted) + 1, guess(counted) + 1], 1, [K, K]);
hits = diag(cf);
recall = hits ./ max(sum(cf, 2), 1);
iou = hits ./ max(sum(cf, 2) + sum(cf, 1)' - hits, 1);
printf("%.17g\n", [trace(cf) / sum(cf(:)); mean(recall); mean(iou); recall; iou]);
