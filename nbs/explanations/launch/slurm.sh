#!/usr/bin/env bash
#SBATCH --job-name=rils
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8          # one task for each GPU
#SBATCH --gpus-per-task=1
#SBATCH --gpu-bind=none              # a task sees all GPUs of its machine and takes its own
#SBATCH --cpus-per-task=8            # for --workers
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120            # two minutes before the end of its time, every task is told to save
#SBATCH --requeue
#SBATCH --open-mode=append

export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) MASTER_PORT=29500
export OMP_NUM_THREADS=1
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK   # srun of Slurm 22.05 and 23.02 does not take it over by itself

# No launcher in between: srun passes signals on and returns the tasks' exit code.
# --resume starts anew where there is nothing to resume.
srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    exec python -m rils_nb.train rils_b16_l20m --data "/data/laion/{00000..01999}.tar" \
        --workers 8 --processes $WORLD_SIZE --resume'
code=$?

# saved and stopped by SIGTERM: goes on when it is the job's turn again
[ $code -eq 143 ] && scontrol requeue "$SLURM_JOB_ID"
exit $code
