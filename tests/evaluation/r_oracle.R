# Writes r_oracle.json: made-up runs and cells, and what R finds in them.
#
#   apt-get install r-base-core r-cran-coin r-cran-jsonlite r-cran-proc
#   Rscript tests/evaluation/r_oracle.R > tests/evaluation/r_oracle.json

suppressPackageStartupMessages({library(coin); library(jsonlite); library(pROC)})
set.seed(2019)

# Weighted F1 of 24 runs of two arms: of four decimals without ties, and of two with many.
arms <- function(digits) {
  repeat {
    a <- round(rnorm(24, 0.879, 0.009), digits)
    b <- round(rnorm(24, 0.874, 0.008), digits)
    if (digits == 2 || !any(duplicated(c(a, b))) && !any(duplicated(abs(a - b)))) break
  }
  list(a = a, b = b)
}

described <- function(x) list(
  mean = mean(x), sd = sqrt(mean((x - mean(x))^2)), min = min(x), max = max(x))

# coin's exact distributions hold with ties, wilcox.test's only without.
compared <- function(x, tied) {
  group <- factor(rep(c("a", "b"), c(length(x$a), length(x$b))))
  exact <- wilcox_test(c(x$a, x$b) ~ group, alternative = "greater", distribution = "exact")
  signed <- wilcoxsign_test(x$a ~ x$b, alternative = "greater", distribution = "exact",
                            zero.method = "Wilcoxon")
  found <- list(
    values = x, first = described(x$a), second = described(x$b),
    u = sum(outer(x$a, x$b, ">") + outer(x$a, x$b, "==") / 2),
    mann_whitney_p = as.numeric(pvalue(exact)), signed_rank_p = as.numeric(pvalue(signed)),
    shift = median(outer(x$a, x$b, "-")))
  if (!tied) {
    unpaired <- wilcox.test(x$a, x$b, alternative = "greater", exact = TRUE)
    both <- wilcox.test(x$a, x$b, exact = TRUE, conf.int = TRUE)
    paired <- wilcox.test(x$a, x$b, paired = TRUE, exact = TRUE, conf.int = TRUE)
    found <- c(found, list(
      wilcox_test_u = unname(unpaired$statistic), wilcox_test_p = unpaired$p.value,
      shift_interval = as.numeric(both$conf.int), paired_shift = unname(paired$estimate),
      paired_interval = as.numeric(paired$conf.int), v = unname(paired$statistic)))
  }
  found
}

p <- c(0.01, 0.04, 0.03, 0.005, 0.2)

# Cells of persons: AUROC without each person, on the logit scale, and its degrees of freedom.
persons <- data.frame(label = rep(c(1, 0), c(7, 6)), cells = c(9, 30, 12, 25, 6, 18, 40,
                                                              11, 28, 7, 35, 16, 22))
cells <- do.call(rbind, lapply(seq_len(nrow(persons)), function(i) data.frame(
  person = i, label = persons$label[i],
  logit = round(1.4 * persons$label[i] - 0.7 + rnorm(1, 0, 0.6) + rnorm(persons$cells[i]), 1))))
auroc <- function(d) {
  of_all <- d$logit[d$label == 1]
  of_hem <- d$logit[d$label == 0]
  mean(outer(of_all, of_hem, ">") + outer(of_all, of_hem, "==") / 2)
}
# One-way analysis of variance of right calls, by aov.
icc <- function(d) {
  d$right <- as.numeric((d$logit > 0) == (d$label == 1))
  square <- summary(aov(right ~ factor(person), data = d))[[1]][["Mean Sq"]]
  n <- table(d$person)
  size <- (sum(n) - sum(n^2) / sum(n)) / (length(n) - 1)
  min(0.9, max(0, (square[1] - square[2]) / (square[1] + (size - 1) * square[2])))
}
# Bell & McCaffrey's degrees of freedom of a mean over cells, from n × n matrices of cells.
freedom <- function(d) {
  n <- nrow(d)
  same <- outer(d$person, d$person, "==")
  omega <- same * icc(d) + diag(n) * (1 - icc(d))
  hat <- diag(n) - matrix(1 / n, n, n)
  columns <- sapply(unique(d$person), function(k) {
    own <- d$person == k
    hat[, own, drop = FALSE] %*% rep(1, sum(own)) / sqrt(1 - sum(own) / n)
  })
  m <- t(columns) %*% omega %*% columns
  sum(diag(m))^2 / sum(m^2)
}
parts <- sapply(c(1, 0), function(y) {
  who <- unique(cells$person[cells$label == y])
  without <- qlogis(sapply(who, function(k) auroc(cells[cells$person != k, ])))
  c((length(who) - 1)^2 / length(who) * var(without), freedom(cells[cells$label == y, ]))
})
df <- sum(parts[1, ])^2 / sum(parts[1, ]^2 / parts[2, ])
half <- qt(0.975, df) * sqrt(sum(parts[1, ]))
clustered <- list(
  cells = cells, auroc = auroc(cells), df = df,
  low = plogis(qlogis(auroc(cells)) - half), high = plogis(qlogis(auroc(cells)) + half))

# Figures in which each person counts once: DeLong's variance by pROC, the limits on the logit scale.
# Made up, with a tie: the means of these cells tell all persons apart.
score <- c(0.3, 1.2, -0.4, 0.8, 0.1, 2, 0.5, -0.9, 0.2, 0.6, -1.5, 0.1, -0.2)
curve <- roc(persons$label, score, quiet = TRUE, direction = "<")
area <- as.numeric(auc(curve))
step <- qnorm(0.975) * sqrt(var(curve, method = "delong")) / (area * (1 - area))
right <- tapply((cells$logit > 0) == (cells$label == 1), cells$person, mean)
once <- function(y) {
  own <- right[persons$label == y]
  without <- qlogis(sapply(seq_along(own), function(k) mean(own[-k])))
  side <- qt(0.975, length(own) - 1) * (length(own) - 1) / sqrt(length(own)) * sd(without)
  plogis(qlogis(mean(own)) + c(0, -side, side))
}
by_person <- list(
  score = score, label = persons$label, auroc_limits = plogis(qlogis(area) + c(-step, step)),
  right = sum(right > 0.5),
  accuracy_limits = as.numeric(binom.test(sum(right > 0.5), length(right))$conf.int),
  sensitivity = once(1), specificity = once(0))

cat(toJSON(list(
  R = paste(R.version$major, R.version$minor, sep = "."),
  coin = as.character(packageVersion("coin")),
  pROC = as.character(packageVersion("pROC")),
  distinct = compared(arms(4), FALSE), tied = compared(arms(2), TRUE),
  holm = list(p = p, adjusted = p.adjust(p, "holm")), clustered = clustered, by_person = by_person
), auto_unbox = TRUE, digits = 17, dataframe = "columns", pretty = FALSE), "\n")
